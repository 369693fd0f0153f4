"""Run an asynchronous command: signals become cancellation, our errors become one line and an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from sandbox.cli.main import INTERRUPTED, TOOL_FAILED
from sandbox.errors import SandboxError

MESSAGE_CHARACTERS = 4000


def run(command: Coroutine[Any, Any, int], *, as_json: bool = False) -> int:
    """Run `command` and return its exit code.

    Ctrl-C, SIGTERM and SIGHUP cancel it, so that its VMs are destroyed before we go; a second Ctrl-C does not wait.
    """
    caught: list[signal.Signals] = []

    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            caught.append(number)
            task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        return await command

    try:
        return asyncio.run(main())
    except KeyboardInterrupt:
        return INTERRUPTED
    except asyncio.CancelledError:
        return 128 + caught[0] if caught else INTERRUPTED
    except SandboxError as error:
        return report(error, as_json=as_json)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 128 + signal.SIGPIPE


def report(error: SandboxError, *, as_json: bool = False, status: int = TOOL_FAILED) -> int:
    """Print an error of ours, as one line or as an envelope, and return the exit code."""
    if as_json:
        print(json.dumps({"kind": "infra", "exit_code": status, "error": {"code": error.code, "message": str(error)}}))
    else:
        print(f"sandbox: {printable(str(error))}", file=sys.stderr)
    return status


def printable(text: str) -> str:
    """Return one line without control characters: what a guest says may be in our messages, and must not act there."""
    escaped = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return escaped if len(escaped) <= MESSAGE_CHARACTERS else escaped[:MESSAGE_CHARACTERS] + "…"
