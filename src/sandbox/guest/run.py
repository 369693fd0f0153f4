"""One execution from request to result: feed its input, take its output, enforce its deadline."""

from __future__ import annotations

import inspect
import signal
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Literal

import anyio

from sandbox.errors import GuestLost
from sandbox.guest.client import GuestClient
from sandbox.guest.execution import End, Execution
from sandbox.result import Outcome, Result
from sandbox.wire import CHUNK_BYTES, Kind

StreamName = Literal["stdout", "stderr"]
OutputSink = Callable[[StreamName, bytes], Awaitable[None] | None]
Stdin = bytes | AsyncIterable[bytes]

KILL_SECONDS = 2.0
"""After a deadline the guest has so long to report that the process tree is gone; then the VM goes instead."""
_WINDOWS = {Kind.OUT: Kind.WINDOW_OUT, Kind.ERR: Kind.WINDOW_ERR}


class Capture:
    """Keeps the first `limit` bytes of each stream, counts all of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.kept = {Kind.OUT: bytearray(), Kind.ERR: bytearray()}
        self.combined = bytearray()
        self.total = {Kind.OUT: 0, Kind.ERR: 0}

    def add(self, kind: Kind, data: bytes) -> None:
        self.total[kind] += len(data)
        head = data[: max(0, self._limit - len(self.kept[kind]))]
        self.kept[kind] += head
        self.combined += head


async def execute(
    client: GuestClient,
    request: dict[str, object],
    *,
    stdin: Stdin,
    on_output: OutputSink | None,
    timeout: float | None,
    capture_bytes: int,
) -> Result:
    """Run one request in the guest and return how it ended.

    Raises `GuestLost`, with what was captured as its `partial`, when the VM or the channel goes first. A cancelled
    caller, or one whose `on_output` raises, has the process tree killed before the error goes on.
    """
    execution = client.open_execution()
    capture = Capture(capture_bytes)
    started = time.monotonic()
    timed_out = False
    try:
        await client.send_json(Kind.START, execution.id, request)
        with anyio.move_on_after(timeout) as deadline:
            await _converse(client, execution, capture, stdin, on_output)
        if execution.end is None and deadline.cancelled_caught:
            timed_out = True
            await client.send_json(Kind.KILL, execution.id, {"tree": True})
            with anyio.move_on_after(KILL_SECONDS):
                await _consume(client, execution, capture, on_output)
            if execution.end is None:
                client.close(GuestLost(f"the guest did not obey a kill within {KILL_SECONDS:g} s; its VM is destroyed"))
    except GuestLost as lost:
        lost.partial = _result(capture, execution.end, time.monotonic() - started, timed_out=timed_out)
        raise
    finally:
        if execution.end is None and client.lost is None:
            await client.send_json(Kind.KILL, execution.id, {"tree": True})
        client.close_execution(execution)
    return _result(capture, execution.end, time.monotonic() - started, timed_out=timed_out)


async def _converse(
    client: GuestClient, execution: Execution, capture: Capture, stdin: Stdin, on_output: OutputSink | None
) -> None:
    """Feed standard input beside taking output; an error of either ends both and is raised as itself."""
    if isinstance(stdin, bytes) and len(stdin) <= execution.stdin_credit:
        await _feed(client, execution, stdin)
        await _consume(client, execution, capture, on_output)
        return
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def feed() -> None:
            try:
                await _feed(client, execution, stdin)
            except Exception as error:  # noqa: BLE001 - handed to the caller below
                failures.append(error)
                group.cancel_scope.cancel()

        group.start_soon(feed)
        try:
            await _consume(client, execution, capture, on_output)
        except Exception as error:  # noqa: BLE001 - raised below, outside of the group
            failures.append(error)
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def _feed(client: GuestClient, execution: Execution, stdin: Stdin) -> None:
    if isinstance(stdin, bytes):
        await _feed_bytes(client, execution, stdin)
    else:
        async for data in stdin:
            await _feed_bytes(client, execution, data)
    await client.send(Kind.STDIN_EOF, execution.id)


async def _feed_bytes(client: GuestClient, execution: Execution, data: bytes) -> None:
    view = memoryview(data)
    while view:
        while not execution.stdin_credit:
            await execution.wait_changed()
        piece = view[: min(CHUNK_BYTES, execution.stdin_credit)]
        execution.stdin_credit -= len(piece)
        await client.send(Kind.STDIN, execution.id, bytes(piece))
        view = view[len(piece) :]


async def _consume(client: GuestClient, execution: Execution, capture: Capture, on_output: OutputSink | None) -> None:
    """Take output until the end, granting the guest new credit for what was consumed."""
    while True:
        while (piece := execution.take()) is not None:
            kind, data = piece
            capture.add(kind, data)
            if on_output is not None:
                answer = on_output("stdout" if kind is Kind.OUT else "stderr", data)
                if inspect.isawaitable(answer):
                    await answer
            if execution.end is None:
                await client.send_count(_WINDOWS[kind], execution.id, len(data))
        if execution.end is not None:
            return
        if execution.lost is not None:
            raise execution.lost
        await execution.wait_changed()


def _result(capture: Capture, end: End | None, duration: float, *, timed_out: bool) -> Result:
    code, number = (end.code, end.signal) if end else (None, None)
    if timed_out:
        outcome = Outcome.TIMED_OUT
    elif end is None:
        outcome = Outcome.VM_LOST
    elif number == signal.SIGKILL and end.oom_kills:
        outcome = Outcome.OUT_OF_MEMORY
    else:
        outcome = Outcome.EXITED if number is None else Outcome.SIGNALED
    return Result(
        outcome=outcome,
        exit_code=None if timed_out else code,
        signal=number,
        stdout=bytes(capture.kept[Kind.OUT]),
        stderr=bytes(capture.kept[Kind.ERR]),
        combined=bytes(capture.combined),
        stdout_bytes=capture.total[Kind.OUT],
        stderr_bytes=capture.total[Kind.ERR],
        duration=duration,
        cpu_seconds=end.cpu_s if end else None,
        peak_memory_bytes=end.peak_memory_bytes if end else None,
    )
