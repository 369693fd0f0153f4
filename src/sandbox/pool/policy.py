"""The pool's decisions: pure functions over what is there. No clock, no I/O, no waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

FAILURES_UNTIL_BREAK = 3
"""So many failed starts in a row, and whoever waits is told the cause instead of being left to time out."""
_FIRST_BACK_OFF = 0.5
_LAST_BACK_OFF = 30.0
_LAST_RENEWAL_BACK_OFF = 3600.0
YOUNG_LEASE = 0.1
"""So many seconds a lease does not compete with one start for its template: its caller waits for a first result."""
_GOLDEN = (5**0.5 - 1) / 2
_HEADROOM = 1.5
"""So much more than the mean is kept ready where the target follows the claims: they come in bursts."""
_HALF_LIFE = 30.0


@dataclass(frozen=True, slots=True)
class Census:
    """One shelf: how many slots are in which state, how many callers wait, and how many should be ready."""

    starting: int
    ready: int
    """Alive and to be claimed: running, paused, or on the way from one to the other."""
    leased: int
    ending: int
    waiting: int
    target: int = 0
    may_start: bool = True
    """False while the shelf backs off after failed starts."""
    stale: int = 0
    """Of `ready`, those of another template generation than new ones are started from."""
    has_young_lease: bool = False
    """Whether a lease began within the last `YOUNG_LEASE` seconds."""
    next_callers: Sequence[float] = ()
    """Seniority of the first of those who wait for whom no VM is on its way: as many as could be started for."""
    is_on_probation: bool = False
    """Whether starts have failed so often that one at a time is tried until one succeeds."""

    @property
    def alive(self) -> int:
        return self.starting + self.ready + self.leased + self.ending

    @property
    def wanted(self) -> int:
        """Starts that would serve who waits and fill the warm set with VMs of the live generation.

        A single VM that is missing is not started while a lease is young, unless there is no other or somebody waits:
        a second claim ends that, so it delays one start by moments and never the filling of a pool.
        """
        fresh = self.ready - self.stale
        missing = max(0, self.target + self.waiting - fresh - self.starting)
        may_wait = missing == 1 and fresh > 0 and self.waiting == 0
        return 0 if may_wait and self.has_young_lease else missing


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, shelf by shelf, in the order of the censuses."""

    starts: list[int] = field(default_factory=list)
    evictions: list[int] = field(default_factory=list)
    """Ready VMs to destroy, stale ones first: replaced by fresh ones, or in the way of another shelf's callers."""


def plan(shelves: Sequence[Census], *, max_size: int, concurrent_starts: int) -> Plan:
    """Return how many VMs to start and to evict: callers by seniority, then warm sets, within every bound.

    A VM that is ending still counts towards `max_size`: its memory is not free before its process is dead.
    """
    room = max_size - sum(shelf.alive for shelf in shelves)
    at_once = concurrent_starts - sum(shelf.starting for shelf in shelves)
    starts = [0] * len(shelves)
    callers = sorted((key, index) for index, shelf in enumerate(shelves) for key in shelf.next_callers)

    def start(index: int, more: int) -> None:
        nonlocal room, at_once
        count = int(max(0, min(more, room, at_once, _allowed(shelves[index], starts[index]))))
        starts[index] += count
        room -= count
        at_once -= count

    for _, index in callers:
        start(index, 1)
    for wanted in (_unserved, lambda shelf: shelf.wanted):
        for index, shelf in enumerate(shelves):
            start(index, wanted(shelf) - starts[index])
    short = 0
    for shelf, started in zip(shelves, starts, strict=True):
        short += int(max(0, min(_unserved(shelf) - started, _allowed(shelf, started))))
    short -= sum(shelf.ending for shelf in shelves) + max(0, room)
    evictions = [0] * len(shelves)
    for index, shelf in enumerate(shelves):
        if not shelf.waiting and short > 0:
            evictions[index] = min(shelf.ready, short)
            short -= evictions[index]
        is_stuck = room <= 0 and not any(starts) and not any(other.starting or other.ending for other in shelves)
        evictions[index] = max(evictions[index], _superseded(shelf, is_stuck=is_stuck))
    return Plan(starts, evictions)


def _allowed(shelf: Census, more: int) -> float:
    """Return how many more may be started beside those that start, and the `more` that are going to."""
    if not shelf.may_start:
        return 0
    return 1 - shelf.starting - more if shelf.is_on_probation else math.inf


def _superseded(shelf: Census, *, is_stuck: bool) -> int:
    """Return how many stale VMs to destroy: those that fresh ones have replaced.

    Where `max_size` leaves no room for a fresh one (`is_stuck`), one goes first, but never the last that is ready.
    """
    replaced = min(shelf.stale, max(0, shelf.ready - shelf.target))
    if replaced == 0 and shelf.stale and is_stuck and shelf.may_start and shelf.ready > 1:
        return 1
    return replaced


def wakes_due(*, running: int, waking: int, paused: int, waiting: int, wanted: int) -> int:
    """Return how many paused VMs to wake: for who waits, and to have `wanted` running for who comes next."""
    return max(0, min(paused, wanted + waiting - running - waking))


def _unserved(shelf: Census) -> int:
    """Callers for whom no VM is on its way."""
    return max(0, shelf.waiting - shelf.ready - shelf.starting) if shelf.may_start else 0


def back_off(failures: int) -> float:
    """Return seconds to wait before the next start after so many failures in a row."""
    if failures < FAILURES_UNTIL_BREAK:
        return 0.0
    return min(_LAST_BACK_OFF, _FIRST_BACK_OFF * 2.0 ** min(failures - FAILURES_UNTIL_BREAK, 16))


def renewal_back_off(interval: float, failures: int) -> float:
    """Return seconds until the pool looks at its template again, after so many successors in a row were of no use."""
    return max(interval, min(_LAST_RENEWAL_BACK_OFF, interval * 2.0 ** min(failures, 16)))


def too_slow(live: Sequence[float], new: Sequence[float], slowdown: float) -> str | None:
    """Return what is wrong with a new template's start times (seconds) beside the live one's, or None.

    The shortest of each are compared: a busy host makes some longer, but none shorter.
    """
    if not live or min(new) <= min(live) * slowdown:
        return None
    return f"its clones start in {min(new):.3f} s, those of the live generation in {min(live):.3f} s"


def spread(ttl: float, number: int) -> float:
    """Return the time to live of the VM with this number: between 3/4 of `ttl` and all of it.

    Consecutive numbers lie far apart, so VMs that were started together are not replaced together.
    """
    return ttl * (0.75 + 0.25 * (number * _GOLDEN % 1.0))


def target_ready(min_size: int, max_ready: int, claims_per_second: float, start_seconds: float) -> int:
    """Return how many VMs should be ready: as many as are claimed while one more is started, within the bounds."""
    if max_ready <= min_size:
        return min_size
    return min(max_ready, max(min_size, math.ceil(claims_per_second * start_seconds * _HEADROOM)))


def seniority(now: float, priority: float, priority_seconds: float) -> float:
    """Return the key by which callers are served, least first.

    One step of priority is worth `priority_seconds` of waiting. So the urgent go first, but nobody starves: who has
    waited long enough is served before everybody of a higher priority who came later.
    """
    return now - priority * priority_seconds


class Rate:
    """Events per second, of late: each counts half after 30 seconds."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._at = 0.0

    def add(self, now: float) -> None:
        self._weight = self._decayed(now) + 1.0
        self._at = now

    def per_second(self, now: float) -> float:
        return self._decayed(now) * math.log(2) / _HALF_LIFE

    def _decayed(self, now: float) -> float:
        return self._weight * math.pow(0.5, max(0.0, now - self._at) / _HALF_LIFE)
