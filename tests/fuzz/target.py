"""What a fuzzer feeds: everything on the host that reads what a guest says, with several readers under way."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

from sandbox.certificate import Cause
from sandbox.errors import SandboxError
from sandbox.guest.client import GuestClient
from sandbox.guest.request import Request
from sandbox.guest.sandbox import Sandbox
from sandbox.guest.verdict import lost
from sandbox.hypervisor.stream import SocketStream
from sandbox.hypervisor.turns import Account
from sandbox.wire import GUEST_LIMITS, Kind, encode
from tests.fakes.virtual_time import VirtualTimeLoop

# Inputs name kinds by their place: a new one goes to the end, where it takes the place of nothing but a repetition.
_KINDS = [*(kind for kind in GUEST_LIMITS if kind != Kind.PREPARED), Kind.OUT, Kind.ANSWER, Kind.PREPARED]
_SLOWEST_SECONDS = 1.0
_MOST_BYTES = 4 * 1024 * 1024


class _Stream:
    """Takes what the host sends and forgets it; hands what the fuzzer says to the host."""

    queued_bytes = sent_bytes = 0

    def __init__(self) -> None:
        self.account = Account()

    def start_receiving(self, on_data: Callable[[bytes], bool], go_on: Callable[[], bool]) -> None:
        self._on_data, self._go_on = on_data, go_on

    def say(self, data: bytes) -> None:
        is_behind = self._on_data(data)
        while is_behind:
            is_behind = self._go_on()

    def write(self, data: bytes) -> None:
        self.queued_bytes += len(data)
        self.sent_bytes += len(data)

    async def wait_unsent_below(self, _size: int) -> None:
        pass

    def close(self) -> None:
        pass


def check(data: bytes) -> None:
    """Feed one input; raise if anything but an error of ours comes of it, or if it takes too long or too much."""
    started = time.thread_time()  # a hang is for the fuzzer to notice; a busy machine is no fault of ours
    loop = VirtualTimeLoop()  # who waits for a deadline does not hold us up
    try:
        loop.run_until_complete(_check(data))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    if time.thread_time() - started > _SLOWEST_SECONDS:
        raise AssertionError(f"it took {time.thread_time() - started:.1f} s")


async def _check(data: bytes) -> None:
    unexpected: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected.append(context))
    stream = _Stream()
    client = GuestClient(cast("SocketStream", stream))
    sandbox = Sandbox(client)
    tasks = [asyncio.create_task(_only_ours(work)) for work in _readers(sandbox)]
    plain = client.start(Request("argv", {"argv": ["x"]}, keep_bytes=1000))
    await asyncio.sleep(0)
    for piece in _pieces(data):
        if client.lost is None:
            stream.say(piece)
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    held = sum(execution.record.memory for execution in client.executions.all_running()) + plain.record.memory
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    client.close(lost(Cause.RELEASED, "the input is over"))
    for task in tasks:
        if not task.cancelled():
            task.result()
    if unexpected:
        raise AssertionError(f"an exception reached the event loop: {unexpected[0]}")
    if held > _MOST_BYTES:
        raise AssertionError(f"{held} bytes are held for {len(data)} that were sent")


def _readers(sandbox: Sandbox) -> list[Coroutine[Any, Any, object]]:
    """Executions 2 to 7, in this order; 1 is a plain one that nobody follows."""

    async def follow() -> None:
        async for _ in sandbox._client.start(Request("argv", {"argv": ["x"]})).events():
            pass

    async def watch() -> None:
        async with sandbox.files.watch("w") as changes:
            async for _ in changes:
                pass

    async def talk() -> None:
        async with sandbox.context() as context:
            await context.run("1")

    return [
        sandbox.files.read("r"),
        sandbox.files.list("l"),
        sandbox.files.stat("s"),
        follow(),
        watch(),
        talk(),
    ]


async def _only_ours(work: Coroutine[Any, Any, object]) -> None:
    with suppress(SandboxError):
        await work


def _pieces(data: bytes) -> list[bytes]:
    """Read the input as raw bytes of the channel, or, more often, as a script of nearly honest frames."""
    if not data:
        return []
    mode, rest = data[0], data[1:]
    if mode % 4 == 0:
        step = 1 + mode // 4
        return [rest[start : start + step] for start in range(0, len(rest), step)][:2000]
    pieces: list[bytes] = []
    while len(rest) >= 4 and len(pieces) < 200:
        kind, ident, length, flags = rest[:4]
        rest = rest[4:]
        payload, rest = rest[:length], rest[length:]
        if flags & 1:  # as a message of a server
            payload = struct.pack("!IB", len(payload), 1 + flags // 2 % 3) + payload
        pieces.append(encode(Kind(_KINDS[kind % len(_KINDS)]), flags >> 7, ident % 8, payload))
    return pieces
