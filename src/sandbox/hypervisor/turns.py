"""How the guests of one event loop share it: none of them holds it for long, and those that ask for much wait in line.

What a guest sends costs the host time, and the guest decides how much: a thousand frames of one byte cost a hundred
times as much as one frame of the same bytes. So each callback works for one turn at most, and each stream has an
account. A stream that stays within its share is served at once, as soon as something arrives. One that has overdrawn
its account, or has more to do than fits into a turn, stands in line. In line, one stream at a time gets one turn, the
one that has overdrawn least first, and after each turn the loop is left to others for `_REST` times as long. While a
stream stands in line its socket is not read, so that the guest, sooner or later, can send no more.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol
from weakref import WeakKeyDictionary

TURN_SECONDS = 0.0005
"""A callback that handles what a guest has sent ends after this time, with the frame that it is at."""
SHARE = 0.05
"""The part of the loop's time that one stream may use for as long as it likes without standing in line."""
_SAVED_SECONDS = 0.2
"""A stream that was silent may use what it has saved up in this time; one that overdrew has paid after as long."""
FLOOD_SECONDS = 10.0
"""A guest that has cost this much work without falling silent once is no honest one.

That is some minute of wall time, and millions of frames. An honest agent in the guest works several times as long for a
small frame as the host does, so what it sends has an end to it; and when it has to wait, its pieces become larger.
"""
_REST = 3
"""All streams in line together get one part of the loop's time, others get this number of parts."""
_MOST_PER_TURN = 8 * TURN_SECONDS
"""No turn costs more: the thread itself may have had to wait for a processor."""
_WAKING_SECONDS = 20e-6
"""What a callback costs besides the work in it."""
_SECONDS_PER_BYTE = 2e-9
"""Bytes in bulk are what a channel is for: they cost nothing up to 500 MB/s."""


class Account:
    """What one stream has used of its share of the loop."""

    def __init__(self) -> None:
        self.paid = 0.0
        """Up to when its share is used up: a time as `time.perf_counter` counts."""
        self.behind = 0.0
        """Seconds of work that it has cost in line, since it had nothing to say for the last time."""

    def charge(self, began: float, size: int, *, is_behind: bool) -> None:
        """Take the cost of work that began then and brought this number of bytes."""
        now = time.perf_counter()
        cost = min(now - began, _MOST_PER_TURN) + _WAKING_SECONDS - size * _SECONDS_PER_BYTE
        if cost > 0:
            paid = max(self.paid, now - _SAVED_SECONDS) + cost / SHARE
            self.paid = min(paid, now + _SAVED_SECONDS)
        self.behind = self.behind + max(0.0, min(cost, TURN_SECONDS)) if is_behind else 0.0


class InLine(Protocol):
    """A stream that stands in line."""

    account: Account

    def take_turn(self) -> bool:
        """Work for one turn; return whether to stay in line."""


class Line:
    """The streams of one event loop that wait for a turn."""

    def __init__(self) -> None:
        self._waiting: dict[InLine, None] = {}
        self._is_going = False
        self._free_at = 0.0

    def join(self, stream: InLine) -> None:
        self._waiting[stream] = None
        self._go_on()

    def leave(self, stream: InLine) -> None:
        self._waiting.pop(stream, None)

    def _go_on(self) -> None:
        if self._waiting and not self._is_going:
            self._is_going = True
            delay = self._free_at - time.perf_counter()
            asyncio.get_running_loop().call_later(max(0.0, delay), self._serve)

    def _serve(self) -> None:
        self._is_going = False
        if not self._waiting:
            return
        began = time.perf_counter()
        stream = min(self._waiting, key=lambda each: each.account.paid)  # of equals the one that waited longest
        del self._waiting[stream]
        try:
            if stream.take_turn():
                self._waiting[stream] = None
        finally:
            now = time.perf_counter()
            self._free_at = now + _REST * min(now - began, _MOST_PER_TURN)
            self._go_on()


_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, Line] = WeakKeyDictionary()


def line_of(loop: asyncio.AbstractEventLoop) -> Line:
    """Return the line of an event loop."""
    line = _lines.get(loop)
    if line is None:
        line = _lines[loop] = Line()
    return line
