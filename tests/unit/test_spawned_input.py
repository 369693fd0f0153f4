"""What a program is given to read when it is started: fed as it takes it, without a caller that waits."""

from __future__ import annotations

import anyio
import pytest

from sandbox.certificate import Cause
from sandbox.errors import StateError
from sandbox.guest.sandbox import Sandbox
from sandbox.wire import CHUNK_BYTES, HOST_LIMITS, WINDOW_BYTES, Decoder, Frame, Kind, encode, window
from tests.fuzz.channel import Channel

END = b'{"code":0,"signal":null}'
LARGE = bytes(range(256)) * 4096


class Taker(Channel):
    """Keeps what the host sends, and takes it when told to."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._all = Decoder(HOST_LIMITS)
        super().__init__()

    def write(self, data: bytes) -> None:
        super().write(data)
        self.frames += self._all.feed(data)

    @property
    def stdin(self) -> bytes:
        return b"".join(frame.payload for frame in self.frames if frame.kind is Kind.STDIN)

    def grant(self, size: int) -> None:
        self.say(encode(Kind.WINDOW_IN, 0, 1, window(Kind.STDIN, size)))

    def take_all(self) -> None:
        granted = 0
        while granted < (there := len(self.stdin)):
            self.grant(min(there - granted, CHUNK_BYTES))
            granted = min(granted + CHUNK_BYTES, there)


async def test_a_start_with_much_input_returns_at_once() -> None:
    """However slowly the program reads, the caller goes on; all of it arrives, in order, and then the end."""
    guest = Taker()
    with anyio.fail_after(5):
        execution = await Sandbox(guest.client).spawn("cat", stdin=LARGE)
    assert len(guest.stdin) == WINDOW_BYTES, "the control: the guest had no room for more"
    guest.take_all()
    assert guest.stdin == LARGE
    assert [frame.kind for frame in guest.frames[-2:]] == [Kind.STDIN, Kind.STDIN_EOF]
    with pytest.raises(StateError):
        await execution.write(b"more")
    guest.release()


async def test_what_is_written_later_comes_behind_what_was_given_at_the_start() -> None:
    """On a terminal standard input stays open: a write waits until all that was given before has gone."""
    guest = Taker()
    execution = await Sandbox(guest.client).spawn("cat", stdin=LARGE, pty=(24, 80))
    async with anyio.create_task_group() as group:
        group.start_soon(execution.write, b"later")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(execution.close_stdin)
        await anyio.wait_all_tasks_blocked()
        assert guest.frames[-1].kind is Kind.STDIN
        guest.take_all()
    assert guest.stdin == LARGE + b"later"
    guest.release()


async def test_input_of_a_program_that_has_ended_is_dropped() -> None:
    """A program that does not read to the end leaves nothing that waits."""
    guest = Taker()
    execution = await Sandbox(guest.client).spawn("true", stdin=LARGE)
    guest.say(encode(Kind.EXITED, 0, 1, END))
    with anyio.fail_after(5):
        assert (await execution.wait()).ok
        await execution.close_stdin()
    assert len(guest.stdin) == WINDOW_BYTES
    guest.release()


async def test_a_start_that_is_cancelled_leaves_no_program() -> None:
    """The caller never learns of the execution, so it is killed, and says why to whoever attaches to it."""

    class Full(Channel):
        async def wait_unsent_below(self, _size: int) -> None:
            await anyio.sleep_forever()

    guest = Full()
    vm = Sandbox(guest.client)
    with anyio.move_on_after(0.01) as scope:
        await vm.spawn(["x"], id="mine")
    assert scope.cancelled_caught
    assert guest.heard == [Kind.START, Kind.STDIN_EOF, Kind.KILL]
    guest.say(encode(Kind.EXITED, 0, 1, b'{"code":null,"signal":9}'))
    assert vm.attach("mine").account()["cause"] == Cause.CANCELLED.value
    guest.release()
