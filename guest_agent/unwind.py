"""What a forked child raises to leave the agent's frames."""


class Unwind(BaseException):
    """Caught by `agent.main` alone, which calls `run` when the agent's stack is gone."""

    def run(self):
        """Never returns."""
        raise NotImplementedError
