"""What every command does with a mistake that it has not looked for: one line, or the envelope that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from sandbox.cli.run import report
from sandbox.errors import HostFileError, SandboxError

P = ParamSpec("P")


def reporting(command: Callable[P, int]) -> Callable[P, int]:
    """Wrap a command that prints one JSON document with `as_json`, so that its failure is one, too."""

    @wraps(command)
    def reported(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return command(*args, **kwargs)
        except (SandboxError, OSError) as error:
            if (known := known_error(error)) is None:
                raise
            return report(known, as_json=bool(kwargs.get("as_json")))

    return reported


def known_error(error: Exception) -> SandboxError | None:
    """Return an error that tells the user what is wrong, by its words or by the file it names; None for a defect."""
    if isinstance(error, SandboxError):
        return error
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        name = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else error.filename
        return HostFileError(error.errno, f"{name}: {error.strerror}")
    return None
