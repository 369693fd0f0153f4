"""A mistake of the library's own while it takes what a guest sends: told and final, instead of frames that are lost."""

from __future__ import annotations

import anyio
import pytest

from sandbox.certificate import Cause
from sandbox.errors import GuestLost
from sandbox.wire import Kind, encode
from tests.fuzz.channel import Channel


class Broken:
    """A follower with a defect."""

    def floor(self, _kind: Kind) -> int:
        return 0

    def feed(self, _kind: Kind, _offset: int, _data: bytes) -> None:
        raise ZeroDivisionError("ours")

    def wake(self) -> None:
        """Nothing waits."""


async def test_a_frame_that_cannot_be_taken_ends_the_vm_with_a_cause() -> None:
    """Everybody who waits hears of it at once; no outcome is told that lacks what was lost."""
    channel, follower = Channel(), Broken()
    execution, other = channel.start(), channel.start()
    execution.follow(follower)
    frames = [encode(Kind.OUT, 0, 1, b"lost"), encode(Kind.EXITED, 0, 1, b'{"code":0,"signal":null}')]
    channel.say(b"".join(frames))
    for waiting in (execution, other):
        with (
            anyio.fail_after(5),
            pytest.raises(GuestLost, match="could not take OUT of execution x1: ZeroDivision") as lost,
        ):
            await waiting.wait()
        assert lost.value.certificate is not None
        assert lost.value.certificate.cause is Cause.HOST_DEFECT
