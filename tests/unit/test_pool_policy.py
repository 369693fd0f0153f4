"""How many VMs to start: the pool's arithmetic, for every state there can be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandbox.pool.policy import FAILURES_UNTIL_BREAK, Census, back_off, starts_due

COUNT = st.integers(0, 40)


@given(COUNT, COUNT, COUNT, COUNT, COUNT, st.integers(0, 20), st.integers(1, 40), st.integers(1, 8))
def test_bounds_hold_in_every_state(
    starting: int, ready: int, leased: int, ending: int, waiting: int, low: int, high: int, at_once: int
) -> None:
    """Never beyond `max_size`, never more starts at once than allowed, never more than somebody wants."""
    census = Census(starting, ready, leased, ending, waiting)
    due = starts_due(census, min_size=low, max_size=high, concurrent_starts=at_once)
    assert due >= 0
    if due:
        assert census.alive + due <= high
        assert starting + due <= at_once
        assert ready + starting + due <= low + waiting


@given(COUNT, st.integers(1, 40), st.integers(1, 8))
def test_who_waits_is_served_as_soon_as_there_is_room(waiting: int, high: int, at_once: int) -> None:
    """An empty pool starts VMs for its callers at once, even when no warm set is wanted."""
    due = starts_due(Census(0, 0, 0, 0, waiting), min_size=0, max_size=high, concurrent_starts=at_once)
    assert due == min(waiting, high, at_once)


def test_back_off_grows_and_is_bounded() -> None:
    """First failures are retried at once; then the pauses double up to half a minute."""
    pauses = [back_off(failures) for failures in range(FAILURES_UNTIL_BREAK + 10)]
    assert pauses[:FAILURES_UNTIL_BREAK] == [0.0] * FAILURES_UNTIL_BREAK
    assert pauses == sorted(pauses)
    assert max(pauses) == 30.0
