"""The host's side of the conversation against a guest that lies: a socket pair, no VM."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest

from sandbox.errors import GuestLost, ProtocolError
from sandbox.guest.client import GuestClient
from sandbox.guest.identity import Identity
from sandbox.guest.request import Request
from sandbox.guest.sandbox import Sandbox
from sandbox.hypervisor.stream import SocketStream
from sandbox.wire import (
    CHUNK_BYTES,
    HELLO,
    PROTOCOL_VERSION,
    READY,
    WINDOW_BYTES,
    Decoder,
    Frame,
    Kind,
    encode,
    window,
)
from sandbox.wire import HOST_LIMITS as FROM_HOST

END = json.dumps({"code": 0, "signal": None, "cpu_us": 100}).encode()


class Guest:
    """The other end of the channel, scripted by a test."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = Decoder(FROM_HOST)
        self._frames: list[Frame] = []
        self.epoch = 0

    async def receive(self) -> Frame:
        while not self._frames:
            await anyio.wait_readable(self.sock)
            self._frames += self._decoder.feed(self.sock.recv(65536))
        frame = self._frames.pop(0)
        self.epoch = frame.epoch
        return frame

    def send(self, kind: Kind, ident: int = 0, payload: bytes = b"", *, epoch: int | None = None) -> None:
        self.sock.send(encode(kind, self.epoch if epoch is None else epoch, ident, payload))

    async def be_ready_always(self) -> None:
        while True:
            await self.be_ready()

    async def be_ready(self, *, protocol: int = PROTOCOL_VERSION, spoil: int | None = None, late_ns: int = 0) -> None:
        _, clock, *proof = HELLO.unpack((await self.receive()).payload)
        if spoil is not None:
            proof[spoil] = b"another"
        self.send(Kind.READY, 0, READY.pack(clock - late_ns, protocol, 1, *proof))


@pytest.fixture
async def pair() -> AsyncIterator[tuple[GuestClient, Guest]]:
    ours, theirs = socket.socketpair()
    stream = SocketStream(ours)
    yield GuestClient(stream), Guest(theirs)
    stream.close()
    theirs.close()


async def _ready(client: GuestClient, guest: Guest) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(guest.be_ready_always)  # the host asks again when the clock was not right at once
        await client.handshake(Identity("test"), 5)
        group.cancel_scope.cancel()


async def test_handshake_confirms_identity(pair: tuple[GuestClient, Guest]) -> None:
    """An honest guest is ready after one exchange."""
    client, guest = pair
    await _ready(client, guest)
    assert client.lost is None


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        *(({"spoil": field}, "did not confirm") for field in range(4)),  # nonce, machine id, boot id, hostname
        ({"protocol": 999}, "protocol 999"),
        ({"late_ns": 3600 * 10**9}, "clock"),
    ],
)
async def test_unproven_identity_is_fatal(pair: tuple[GuestClient, Guest], lie: dict[str, int], said: str) -> None:
    """No proof, another protocol or a clock that stays wrong: the machine is not used."""
    client, guest = pair
    async with anyio.create_task_group() as group:

        async def answer_every_time() -> None:
            while True:
                await guest.be_ready(**lie)

        group.start_soon(answer_every_time)
        with pytest.raises(ProtocolError, match=said):
            await client.handshake(Identity("test"), 5)
        group.cancel_scope.cancel()


async def test_silent_guest_is_lost_after_the_timeout(pair: tuple[GuestClient, Guest]) -> None:
    """A handshake that nobody answers ends by its deadline."""
    client, _guest = pair
    with pytest.raises(GuestLost, match="READY within"):
        await client.handshake(Identity("test"), 0.05)


async def _provoke(client: GuestClient, guest: Guest, kind: Kind, ident: int, payload: bytes, epoch_shift: int) -> None:
    await _ready(client, guest)
    async with anyio.create_task_group() as group:

        async def misbehave() -> None:
            await guest.receive()  # START of execution 1
            guest.send(kind, ident, payload, epoch=(guest.epoch + epoch_shift) % 2**32)

        group.start_soon(misbehave)
        await _refused(client)


async def _refused(client: GuestClient) -> None:
    with pytest.raises(ProtocolError):
        await Sandbox(client).exec(["x"], timeout=5)
    assert client.lost is not None


@pytest.mark.parametrize(
    ("kind", "ident", "payload", "epoch_shift"),
    [
        (Kind.OUT, 1, b"x", 1),  # of another epoch
        (Kind.OUT, 7, b"x", 0),  # of an execution that never was
        (Kind.READY, 0, bytes(READY.size), 0),  # not asked for
        (Kind.QUIESCED, 0, b"", 0),
        (Kind.PREPARED, 0, b"", 0),
        (Kind.EXITED, 1, b"{}", 0),
        (Kind.EXITED, 1, b'{"code": 0, "signal": 9, "cpu_us": 1}', 0),  # both
        (Kind.EXITED, 1, b'{"code": null, "signal": null, "cpu_us": 1}', 0),  # neither
        (Kind.EXITED, 1, b'{"code": "0", "signal": null, "cpu_us": 1}', 0),  # of the wrong type
        (Kind.EXITED, 1, b'{"code": 1e999, "signal": null, "cpu_us": 1}', 0),
        (Kind.EXITED, 1, b'{"code": 0, "signal": null, "cpu_us": NaN}', 0),
        (Kind.EXITED, 1, b'{"code": 0, "signal": null, "cpu_us": 1, "host_path": "/etc"}', 0),
        (Kind.EXITED, 1, b"[" * 60_000, 0),
        (Kind.WINDOW_IN, 1, window(Kind.STDIN, 1), 0),  # credit that was never spent: any is too much
        (Kind.WINDOW_IN, 1, window(Kind.OUT, 1), 0),  # of a stream that flows the other way
        (Kind.OUT, 1, b"", 0),  # no output is no news
        (Kind.ANSWER, 1, b"x", 0),  # of a program that is no server
        (Kind.PONG, 0, b"", 0),
        (Kind.STARTED, 1, b"x", 0),
    ],
)
async def test_right_frame_at_the_wrong_time_ends_the_conversation(
    pair: tuple[GuestClient, Guest], kind: Kind, ident: int, payload: bytes, epoch_shift: int
) -> None:
    """Whatever an honest guest could not have sent is a protocol error for everyone who waits."""
    client, guest = pair
    await _provoke(client, guest, kind, ident, payload, epoch_shift)


async def test_flood_beyond_the_window_is_refused(pair: tuple[GuestClient, Guest]) -> None:
    """A guest that ignores flow control while the reader is slow is cut off after one window: memory stays bounded."""
    client, guest = pair
    await _ready(client, guest)
    execution = client.start(Request("argv", {"argv": ["x"]}))
    slow = execution.events()
    for _ in range(WINDOW_BYTES // CHUNK_BYTES + 1):
        await anyio.wait_writable(guest.sock)
        guest.send(Kind.OUT, execution.number, bytes(CHUNK_BYTES))
        await anyio.lowlevel.checkpoint()  # let the loop read what was sent
    with anyio.fail_after(5), pytest.raises(ProtocolError):
        await execution.wait()
    assert isinstance(client.lost, ProtocolError)
    slow.close()


async def test_second_end_of_one_execution_is_refused(pair: tuple[GuestClient, Guest]) -> None:
    """An execution ends once."""
    client, guest = pair
    await _ready(client, guest)
    execution = client.start(Request("argv", {"argv": ["x"]}))
    guest.send(Kind.EXITED, execution.number, END)
    guest.send(Kind.EXITED, execution.number, END)
    with anyio.fail_after(5):
        await execution.wait()
        while client.lost is None:
            await anyio.lowlevel.checkpoint()
    assert isinstance(client.lost, ProtocolError)


async def test_guest_that_does_not_obey_a_kill_is_given_up(pair: tuple[GuestClient, Guest]) -> None:
    """The host's deadline does not need the guest's consent: the VM goes, the result says timed out."""
    client, guest = pair
    await _ready(client, guest)
    result = await Sandbox(client).exec(["x"], timeout=0.05)
    assert result.timed_out
    assert isinstance(client.lost, GuestLost)


@pytest.mark.parametrize("cut", range(len(encode(Kind.EXITED, 0, 1, END))))
async def test_frame_that_stops_anywhere_ends_by_the_deadline(pair: tuple[GuestClient, Guest], cut: int) -> None:
    """Half a frame, then silence: at every byte the call still ends."""
    client, guest = pair
    await _ready(client, guest)
    execution = client.start(Request("argv", {"argv": ["x"]}))
    guest.sock.send(encode(Kind.EXITED, guest.epoch, execution.number, END)[:cut])
    with anyio.move_on_after(0.01) as scope:
        await execution.wait()
    assert scope.cancelled_caught
    assert not execution.has_ended
