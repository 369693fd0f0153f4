"""All that one guest can make this process keep, together: no more than the page says."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import anyio.lowlevel

from sandbox.guest.output import MEMORY_BYTES, MOST_RUNS, TAIL_BYTES
from sandbox.guest.registry import KEPT_BYTES
from sandbox.guest.spill import BEHIND_BYTES
from sandbox.hypervisor import console as console_module
from sandbox.hypervisor.console import Console
from sandbox.hypervisor.stream import RECEIVE_BYTES
from sandbox.wire import CHUNK_BYTES, WINDOW_BYTES, Kind, encode
from tests.fuzz.channel import Channel

MIB = 1024 * 1024
_PAGE = (Path(__file__).parents[2] / "docs" / "confinement.md").read_text()
FRAMES = 600_000
"""Pairs of single bytes: more than the record keeps the order of, and more than two windows."""


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _said(name: str) -> float:
    """Return the number of MiB in a row of the page."""
    match = re.search(rf"^\| {re.escape(name)} \|.*\| ([\d.]+) MiB \|$", _PAGE, re.M)
    assert match, f"the page has no row {name!r}"
    return float(match[1])


def test_the_page_adds_up_what_the_code_allows() -> None:
    """Each row is the sum of the constants that it names, and the last one the sum of the rows."""
    rows = {
        "channel": 2 * RECEIVE_BYTES + CHUNK_BYTES,
        "console": RECEIVE_BYTES + console_module.KEPT_BYTES,
        "ended programs": KEPT_BYTES,
        "record of a program": 2 * (MEMORY_BYTES + 2 * TAIL_BYTES + CHUNK_BYTES + 2 * (BEHIND_BYTES + WINDOW_BYTES))
        + 4 * MOST_RUNS,
        "one who follows it": 2 * WINDOW_BYTES + 8 * 2 * WINDOW_BYTES,
    }
    for name, size in rows.items():
        assert 0 <= _said(name) - size / MIB < 0.15, (name, size / MIB)
    assert abs(_said("together") - sum(map(_said, rows))) < 0.01


async def test_a_guest_that_fills_everything_stays_within_the_sum() -> None:
    """Single bytes of both streams that nobody takes, then, as the kill is not obeyed, more than the record orders."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    console = Console(ours)
    console.start_receiving()
    theirs.send(b"x" * 100_000)
    channel = Channel()
    execution = channel.start(keep_bytes=8 * MIB)
    pair = encode(Kind.OUT, 0, 1, b"x") + encode(Kind.ERR, 0, 1, b"x")
    channel.say(pair * 1000)
    await anyio.lowlevel.checkpoint()
    before = _resident()
    follower = execution.events()
    for number in range(FRAMES // 1000):
        if number * 1000 >= WINDOW_BYTES - 3000 and not execution.was_stopped:
            execution.kill()
        channel.say(pair * 1000)  # without a turn of the loop between, so that the kill's deadline does not come
    assert channel.client.lost is None
    assert not execution.record.combined_is_whole
    assert _resident() - before < _said("together") * MIB
    follower.close()
    console.close()
    theirs.close()
    channel.release()
