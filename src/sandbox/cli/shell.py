"""`sandbox shell`: an interactive shell in a fresh VM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sandbox.cli.environment import variables
from sandbox.cli.escape import Left, with_escape
from sandbox.cli.exec import memory_mib
from sandbox.cli.exit_code import INTERRUPTED
from sandbox.cli.run import complain, report, run
from sandbox.cli.streams import is_interactive, pass_on, raw_terminal, standard_input, terminal_size
from sandbox.config import TemplateConfig
from sandbox.errors import SandboxError
from sandbox.guest.execution import Status
from sandbox.result import Outcome
from sandbox.template.template import Template

_ID = "shell"


@dataclass(frozen=True)
class ShellRequest:
    """What the command line asked for, as it was typed."""

    image: str
    memory: str
    user: str | None
    cwd: str | None
    env: list[str]
    env_file: list[Path]


def run_shell(request: ShellRequest) -> int:
    """Run the shell and return its exit code."""
    try:
        env = variables(request.env, request.env_file)
        config = TemplateConfig(image=request.image, memory_mib=memory_mib(request.memory))
    except SandboxError as error:
        return report(error)
    try:
        return run(_shell(request, env, config))
    except Left:
        complain("left the shell; its VM is destroyed")
        return INTERRUPTED


async def _shell(request: ShellRequest, env: dict[str, str], config: TemplateConfig) -> int:
    """At a terminal the guest has one, too; else commands are read from standard input to its end."""
    interactive = is_interactive()
    template = await Template.ensure(config)
    async with template.lease() as vm:

        def resize(rows: int, columns: int) -> None:
            if vm.status(_ID) is Status.RUNNING:
                vm.attach(_ID).resize(rows, columns)

        with raw_terminal(resize):
            result = await vm.exec(
                ["bash", "--login", *(() if interactive else ("-s",))],
                id=_ID,
                pty=terminal_size() if interactive else None,
                stdin=with_escape(standard_input()) if interactive else standard_input(),
                on_output=pass_on,
                capture_bytes=0,
                env=env,
                cwd=request.cwd,
                user=request.user,
            )
    if result.outcome is not Outcome.EXITED:
        complain(result.describe())
    return result.shell_status
