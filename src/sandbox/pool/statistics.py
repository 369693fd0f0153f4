"""What a pool has done and holds, as a frozen record whose sums must come out even."""

from __future__ import annotations

from dataclasses import dataclass


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
    created: int
    destroyed: int
    failed_starts: int
    """Of `destroyed`, those that never became ready."""
    expired: int
    """Of `destroyed`, those that were ready but older than the time to live, or dead."""
    claimed: int
    hits: int
    """Claims that were served at once by a ready VM."""
    released: int
    lost: int
    """Leases whose VM died before they were released."""
