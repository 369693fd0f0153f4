"""What a pool has done and holds, as a frozen record whose sums must come out even."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sandbox.pool.policy import Census


@dataclass(slots=True)
class Counters:
    """What has happened on one shelf since the pool was opened."""

    created: int = 0
    destroyed: int = 0
    failed_starts: int = 0
    expired: int = 0
    claimed: int = 0
    hits: int = 0
    released: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Counters since the pool was opened, and what exists now.

    Always: `created == destroyed + starting + ready + leased + ending` and `claimed == released + lost + leased`.
    """

    starting: int
    ready: int
    leased: int
    ending: int
    waiting: int
    target: int
    """So many should be ready."""
    created: int
    destroyed: int
    failed_starts: int
    """Of `destroyed`, those that never became ready."""
    expired: int
    """Of `destroyed`, those that were ready, but too old, dead, superseded, or in another template's callers' way."""
    claimed: int
    hits: int
    """Claims that were served at once by a ready VM."""
    released: int
    """Leases that ended by release, time to live, or idleness."""
    lost: int
    """Leases whose VM died before they were released."""


@dataclass(frozen=True, slots=True)
class GenerationStatistics:
    """The VMs of one template generation that exist now."""

    generation: int
    is_live: bool
    """Whether new VMs are started from it."""
    starting: int = 0
    ready: int = 0
    leased: int = 0
    ending: int = 0


def add_up(shelves: Iterable[tuple[Census, Counters]]) -> PoolStatistics:
    """Return the sums over all shelves."""
    pairs = list(shelves)

    def states(name: str) -> int:
        return sum(getattr(census, name) for census, _ in pairs)

    def events(name: str) -> int:
        return sum(getattr(count, name) for _, count in pairs)

    return PoolStatistics(
        **{name: states(name) for name in ("starting", "ready", "leased", "ending", "waiting", "target")},
        **{name: events(name) for name in Counters.__slots__},
    )
