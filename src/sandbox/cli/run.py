"""Run an asynchronous command: signals become cancellation, our errors become one line and an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from sandbox.cli.exit_code import INTERRUPTED, TOOL_FAILED
from sandbox.errors import HostFileError, SandboxError
from sandbox.printable import printable

T = TypeVar("T")


def run(command: Coroutine[Any, Any, int], *, as_json: bool = False) -> int:
    """Run `command` and return its exit code, also where a signal ends it."""
    try:
        return complete(command)
    except Interrupted as end:
        return end.status
    except SandboxError as error:
        return report(error, as_json=as_json)
    except BrokenPipeError:
        discard_output()
        return 128 + signal.SIGPIPE


def complete(command: Coroutine[Any, Any, T]) -> T:
    """Run `command` and return what it gives.

    Ctrl-C, SIGTERM and SIGHUP cancel it, so that its VMs are destroyed before we go, and `Interrupted` is raised; a
    second Ctrl-C does not wait. A signal that we were started to ignore, as `nohup` does, stays ignored.
    """
    caught: list[signal.Signals] = []

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            caught.append(number)
            task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, stop, number)
        return await command

    try:
        return asyncio.run(main())
    except KeyboardInterrupt:
        raise Interrupted(INTERRUPTED) from None
    except asyncio.CancelledError:
        raise Interrupted(128 + caught[0] if caught else INTERRUPTED) from None


class Interrupted(SystemExit):
    """A signal has ended the command; `status` is the exit code that says so."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def report(error: SandboxError, *, as_json: bool = False, status: int = TOOL_FAILED) -> int:
    """Print an error of ours, as one line or as an envelope, and return the exit code."""
    if as_json:
        try:
            say({"kind": "infra", "exit_code": status, "error": describe(error)})
        except (BrokenPipeError, HostFileError):
            complain(describe(error)["message"])
            discard_output()
    else:
        complain(describe(error)["message"])
        try:
            sys.stdout.flush()
        except OSError:  # just told, or less important
            discard_output()
    return status


def describe(error: SandboxError) -> dict[str, str]:
    """Return an error's code and words, without a number of the operating system before them."""
    said = error.strerror if isinstance(error, OSError) and error.filename is None else None
    return {"code": error.code, "message": printable(said or str(error))}


def say(document: Mapping[str, object]) -> None:
    """Print one JSON document on standard output; raise `HostFileError` where it cannot be written."""
    try:
        print(json.dumps(document), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostFileError(error.errno, f"our stdout cannot be written: {error.strerror}") from error


def complain(message: str) -> None:
    """Print one line of ours on standard error; if that cannot be written, the exit code has to do."""
    with contextlib.suppress(OSError):
        print(f"sandbox: {printable(message)}", file=sys.stderr, flush=True)


def discard_output() -> None:
    """Have the interpreter's last flush of standard output go nowhere, instead of failing again."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
