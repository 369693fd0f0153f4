"""The entry point: parse, run, and end in an exit code that tells whose failure it is."""

from __future__ import annotations

import errno
import io
import os
import sys

from sandbox.cli.app import app
from sandbox.cli.exit_code import INTERRUPTED, TOOL_FAILED

# pydantic would look through every installed package for plugins of its own, with each command.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def _hold_standard_streams() -> None:
    """Let a standard stream that we were started without lead nowhere.

    Otherwise the next file or socket to be opened gets its number, and the guest's output would be written there.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - print(file=None) would take stdout


def _print_anything() -> None:
    """Let a message in which a character has no place in this terminal's encoding come without that character."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _is_written() -> bool:
    """Return whether all that was printed has got out; say so if it has not, unless its reader has gone."""
    try:
        sys.stdout.flush()
    except OSError as error:
        from sandbox.cli.run import complain, discard_output

        if not isinstance(error, BrokenPipeError):
            complain(f"our stdout cannot be written: {error.strerror}")
        discard_output()
        return False
    return True


def main() -> None:
    """Entry point: no failure of ours ends in a traceback or in an exit code that a script could have given."""
    _hold_standard_streams()
    _print_anything()
    try:
        app()
    except SystemExit as end:
        sys.exit(end.code if _is_written() or end.code else TOOL_FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - one line for the user, the trace for who asks for it
        import logging
        import traceback

        from sandbox.cli.reporting import known_error
        from sandbox.cli.run import complain, describe

        is_written = _is_written()
        if isinstance(error, OSError) and not is_written:
            sys.exit(TOOL_FAILED)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            complain(f"{error.strerror}: our output, or a file of ours, cannot be written; make room and try again")
        elif (known := known_error(error)) is not None:
            complain(describe(known)["message"])
        else:
            complain(f"internal error: {type(error).__name__}: {error}; -vv shows where")
        if logging.getLogger("sandbox").isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        sys.exit(TOOL_FAILED)
