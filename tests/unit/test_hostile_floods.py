"""A guest that sends as fast as it can what costs the most: the event loop stays free for others."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress

import anyio
import anyio.lowlevel
import pytest

from sandbox.errors import GuestLost, ProtocolError
from sandbox.guest import client as client_module
from sandbox.guest.client import GuestClient
from sandbox.guest.execution import Execution
from sandbox.guest.request import Request
from sandbox.hypervisor.stream import RECEIVE_BYTES, SocketStream
from sandbox.result import Outcome
from sandbox.wire import Kind, encode

END = encode(Kind.EXITED, 0, 1, json.dumps({"code": 0, "signal": None, "cpu_us": 100}).encode())
FLOODS = {
    "single bytes": encode(Kind.OUT, 0, 1, b"x"),
    "single bytes of both streams in turn": encode(Kind.OUT, 0, 1, b"x") + encode(Kind.ERR, 0, 1, b"x"),
    "single bytes of two programs in turn": encode(Kind.OUT, 0, 1, b"x") + encode(Kind.OUT, 0, 2, b"x"),
}
WRITER = """import os, sys
port = int(sys.argv[1])
os.set_blocking(port, True)
block = bytes.fromhex(sys.argv[2]) * 4000
while True: os.write(port, block)"""
BLOCK = FLOODS["single bytes of both streams in turn"] * 2000
LONGEST_SECONDS = 0.01


class Guest:
    """A guest in which two programs run, and that a test speaks for."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.stream = SocketStream(ours)
        self._unsent = b""
        self.is_closed = False
        self.client = GuestClient(self.stream, on_closed=self._on_closed)
        self.executions = [self.client.start(Request("argv", {"argv": ["x"]}, keep_bytes=1000)) for _ in range(2)]

    @property
    def execution(self) -> Execution:
        return self.executions[0]

    def _on_closed(self) -> None:
        self.is_closed = True

    def say(self, data: bytes) -> int:
        """Send what there is room for of this, and of what there was none for before; return how much that is."""
        self._unsent += data
        with suppress(BlockingIOError):
            sent = self.sock.send(self._unsent)
            self._unsent = self._unsent[sent:]
            return sent
        return 0

    async def overdraw(self) -> None:
        """Send much until it stands in line."""
        with anyio.fail_after(10):
            while self.stream.account.behind == 0:
                self.say(b"" if self._unsent else BLOCK)
                await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        self.client.close(GuestLost("the test is over"))
        self.sock.close()


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


@contextmanager
def _flooding(sock: socket.socket, frames: bytes) -> Iterator[None]:
    """Have a process of its own send these frames, again and again."""
    command = [sys.executable, "-c", WRITER, str(sock.fileno()), frames.hex()]
    with subprocess.Popen(command, pass_fds=[sock.fileno()], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


async def _longest_iteration(seconds: float) -> float:
    """Return the most processor time that one iteration of the loop has taken: others' load is none of it."""
    longest, over = 0.0, time.monotonic() + seconds
    while time.monotonic() < over:
        before = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - before)
    return longest


@pytest.mark.parametrize("number", [1, 8])
@pytest.mark.parametrize("name", FLOODS)
async def test_floods_hold_the_loop_for_moments_only(name: str, number: int) -> None:
    """However small the frames and however many the guests, no iteration of the loop takes long."""
    guests = [Guest() for _ in range(number)]
    with ExitStack() as stack:
        for guest in guests:
            stack.callback(guest.close)
            stack.enter_context(_flooding(guest.sock, FLOODS[name]))
        with anyio.fail_after(20):
            while not all(guest.execution.record.streams[Kind.OUT].total for guest in guests):
                await anyio.lowlevel.checkpoint()
        longest = await _longest_iteration(1.0)
        assert all(guest.client.lost is None for guest in guests)
        assert longest < LONGEST_SECONDS


async def test_what_arrived_before_the_end_of_the_channel_is_handled_in_order(guest: Guest) -> None:
    """Thousands of small frames, the program's end, then the guest is gone: all of it counts, in this order."""
    pieces = 5000
    said = FLOODS["single bytes of both streams in turn"] * pieces + END
    sent = 0
    with anyio.fail_after(10):
        while sent < len(said):
            await anyio.wait_writable(guest.sock)
            sent += guest.say(said if not sent else b"")
        guest.sock.close()
        while not guest.is_closed:
            assert not guest.execution.has_ended or guest.execution.outcome is Outcome.EXITED
            await anyio.lowlevel.checkpoint()
    assert guest.execution.outcome is Outcome.EXITED
    result = await guest.execution.wait()
    assert (result.stdout_bytes, result.stderr_bytes) == (pieces, pieces)


async def test_a_guest_that_waits_its_turn_is_not_read(guest: Guest) -> None:
    """While what it has sent is not handled, its socket fills up: it can send no more, and the host keeps no more."""
    await guest.overdraw()
    read, sent = guest.client._inbox.frames, 0
    while piece := guest.say(BLOCK):  # no turn of the loop comes between
        sent += piece
    assert sent < RECEIVE_BYTES
    most = read + (RECEIVE_BYTES + sent) // len(FLOODS["single bytes"])
    with anyio.fail_after(10):
        while guest.stream.account.behind:
            await anyio.lowlevel.checkpoint()
    assert read < guest.client._inbox.frames <= most


def _taken(guest: Guest) -> int:
    return sum(stream.total for stream in guest.execution.record.streams.values())


async def test_closing_drops_what_was_not_handled(guest: Guest) -> None:
    """After the end of a conversation nothing of it is handled any more, and nothing of it stays in the loop."""
    await guest.overdraw()
    guest.client.close(GuestLost("closed"))
    taken = _taken(guest)
    for _ in range(100):
        await anyio.sleep(0.001)  # several turns, had it any
    assert _taken(guest) == taken
    assert guest.client._inbox.next() is None


async def test_a_guest_that_does_nothing_but_flood_is_ended(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that costs work for long without ever falling silent is none of ours, and the certificate says so."""
    monkeypatch.setattr(client_module, "FLOOD_SECONDS", 0.05)
    with _flooding(guest.sock, FLOODS["single bytes"]), anyio.fail_after(20):
        await guest.execution.wait_over()
    assert isinstance(guest.client.lost, ProtocolError)
    assert "0.05 s of work without a pause" in str(guest.client.lost)
    assert guest.execution.outcome is Outcome.PROTOCOL_ERROR


async def test_a_guest_that_falls_silent_in_between_is_not_ended(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: as many frames, but each time it waits until it was heard."""
    monkeypatch.setattr(client_module, "FLOOD_SECONDS", 0.05)
    cost, said = 0.0, 0
    with anyio.fail_after(60):
        while cost < 0.2:
            assert guest.say(BLOCK) == len(BLOCK)
            said += 4000
            before = time.thread_time()
            while _taken(guest) < said:
                await anyio.lowlevel.checkpoint()
            while guest.stream.account.behind:
                await anyio.lowlevel.checkpoint()
            cost += time.thread_time() - before
    assert guest.client.lost is None


@pytest.mark.parametrize("portion", [1, 65535])
async def test_credit_in_small_change_is_refused(guest: Guest, portion: int) -> None:
    """An honest guest gives credit back in portions; a flood of smaller ones ends with the first."""
    await guest.execution.write(bytes(65536))
    guest.sock.send(encode(Kind.WINDOW_IN, 0, 1, b"\x03" + portion.to_bytes(4, "big")))
    with anyio.fail_after(5):
        await guest.execution.wait_over()
    assert isinstance(guest.client.lost, ProtocolError)
    assert "a portion has at least" in str(guest.client.lost)


async def test_a_guest_that_never_reads_cannot_make_credit_wait(guest: Guest) -> None:
    """Credit that has not left the host was not received: to use it ends the conversation."""
    frame = encode(Kind.OUT, 0, 1, bytes(65536))
    with anyio.fail_after(20):
        while guest.client.lost is None:
            guest.say(b"" if guest._unsent else frame)
            assert len(guest.stream._unsent) < 1000
            await anyio.lowlevel.checkpoint()
    assert isinstance(guest.client.lost, ProtocolError)
    assert "overran its window" in str(guest.client.lost)
