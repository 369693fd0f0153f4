"""Whoever follows slowly, when the guest has credit all the same: memory stays bounded, and what is kept is given."""

from __future__ import annotations

import json

from sandbox.guest.events import Ended, Output
from sandbox.wire import CHUNK_BYTES, WINDOW_BYTES, Kind, encode
from tests.fuzz.channel import Channel

KEPT = 100_000
PIECES = 64
END = json.dumps({"code": None, "signal": 9, "cpu_us": 100}).encode()


async def test_a_killed_program_that_floods_leaves_no_more_than_a_window_waiting() -> None:
    """The kill is not obeyed and output comes on: a slow follower reads it from what is kept, with a gap."""
    channel = Channel()
    execution = channel.start(keep_bytes=KEPT)
    follower = execution.events()
    channel.say(encode(Kind.ERR, 0, 1, b"before"))
    execution.kill()
    written = b"".join(bytes([number]) * CHUNK_BYTES for number in range(PIECES))
    for start in range(0, len(written), CHUNK_BYTES):
        channel.say(encode(Kind.OUT, 0, 1, written[start : start + CHUNK_BYTES]))
        assert len(follower._arrived) <= 2 * WINDOW_BYTES
    channel.say(encode(Kind.ERR, 0, 1, b" and after"))
    channel.say(encode(Kind.EXITED, 0, 1, END))
    seen, errors, events = 0, b"", [event async for event in follower]
    for event in events:
        if isinstance(event, Output) and event.stream == "stdout":
            assert event.offset >= seen
            assert event.offset == seen or seen == KEPT, "only what was not kept is missing"
            assert event.data == written[event.offset :][: len(event.data)]
            seen = event.offset + len(event.data)
        elif isinstance(event, Output):
            errors += event.data
    assert (seen, errors) == (len(written), b"before and after")
    assert isinstance(events[-1], Ended)
    channel.release()
