"""A fixed piece of Python: how fast this processor runs an interpreter at this moment."""

from __future__ import annotations

import time

YARDSTICK = "a fixed loop of Python"
_ROUNDS = 2000


def yardstick() -> float:
    """Return the seconds of work that never changes: some arithmetic, a table, some text.

    It takes a few times as long as a claim. A claim is this process's own Python and nothing else, so a processor that
    is slower, hotter or shared at the moment makes both longer in the same proportion.
    """
    started = time.monotonic()
    table: dict[int, str] = {}
    total = 0
    for number in range(_ROUNDS):
        total = (total * 31 + number) & 0xFFFF
        table[total & 0xFF] = str(number)
    return time.monotonic() - started
