"""What our commands end with when it is not a script's own exit code, as `env` and `timeout` do."""

TOOL_FAILED, CANNOT_INVOKE, NOT_FOUND, INTERRUPTED = 125, 126, 127, 130
