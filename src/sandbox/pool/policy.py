"""The pool's decisions: pure functions over what is there. No clock, no I/O, no waiting."""

from __future__ import annotations

from dataclasses import dataclass

FAILURES_UNTIL_BREAK = 3
"""So many failed starts in a row, and whoever waits is told the cause instead of being left to time out."""
_FIRST_BACK_OFF = 0.5
_LAST_BACK_OFF = 30.0


@dataclass(frozen=True, slots=True)
class Census:
    """How many slots are in which state, and how many callers wait."""

    starting: int
    ready: int
    leased: int
    ending: int
    waiting: int

    @property
    def alive(self) -> int:
        return self.starting + self.ready + self.leased + self.ending


def starts_due(census: Census, *, min_size: int, max_size: int, concurrent_starts: int) -> int:
    """Return how many VMs to start now: enough for who waits plus the warm set, within every bound.

    A VM that is ending still counts towards `max_size`: its memory is not free before its process is dead.
    """
    wanted = min_size + census.waiting - census.ready - census.starting
    room = max_size - census.alive
    return max(0, min(wanted, room, concurrent_starts - census.starting))


def back_off(failures: int) -> float:
    """Return seconds to wait before the next start after so many failures in a row."""
    if failures < FAILURES_UNTIL_BREAK:
        return 0.0
    return min(_LAST_BACK_OFF, _FIRST_BACK_OFF * 2.0 ** min(failures - FAILURES_UNTIL_BREAK, 16))
