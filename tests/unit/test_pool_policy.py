"""The pool's arithmetic, for every state there can be."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sandbox.pool.policy import (
    FAILURES_UNTIL_BREAK,
    YOUNG_LEASE,
    Census,
    Rate,
    back_off,
    plan,
    renewal_back_off,
    seniority,
    spread,
    target_ready,
    too_slow,
    wakes_due,
)

COUNT = st.integers(0, 20)
SHELF = st.builds(
    Census, COUNT, COUNT, COUNT, COUNT, COUNT, st.integers(0, 10), st.booleans(), has_young_lease=st.booleans()
)
STALE = st.builds(lambda shelf, stale: replace(shelf, stale=min(stale, shelf.ready)), SHELF, COUNT)
"""Some of its ready VMs are of another generation."""
SHELVES = st.lists(SHELF, min_size=1, max_size=4)


@given(st.lists(STALE, min_size=1, max_size=4), st.integers(1, 80), st.integers(1, 8))
def test_bounds_hold_in_every_state(shelves: list[Census], high: int, at_once: int) -> None:
    """Never beyond `max_size`, never more starts at once than allowed, never more than somebody wants."""
    due = plan(shelves, max_size=high, concurrent_starts=at_once)
    assert all(start >= 0 for start in due.starts)
    if any(due.starts):
        assert sum(shelf.alive for shelf in shelves) + sum(due.starts) <= high
        assert sum(shelf.starting for shelf in shelves) + sum(due.starts) <= at_once
    for shelf, start in zip(shelves, due.starts, strict=True):
        assert start <= shelf.wanted
        assert shelf.may_start or start == 0


@given(COUNT, st.integers(1, 40), st.integers(1, 8))
def test_who_waits_is_served_as_soon_as_there_is_room(waiting: int, high: int, at_once: int) -> None:
    """An empty pool starts VMs for its callers at once, even when no warm set is wanted."""
    due = plan([Census(0, 0, 0, 0, waiting)], max_size=high, concurrent_starts=at_once)
    assert due.starts == [min(waiting, high, at_once)]


@given(SHELVES, st.integers(1, 80))
def test_callers_come_before_warm_sets(shelves: list[Census], high: int) -> None:
    """No warm set is filled while somebody waits for whom nothing is on its way."""
    due = plan(shelves, max_size=high, concurrent_starts=100)
    for shelf, start in zip(shelves, due.starts, strict=True):
        unserved = shelf.waiting - shelf.ready - shelf.starting - start
        if shelf.may_start and unserved > 0:
            others = zip(shelves, due.starts, strict=True)
            assert all(count <= max(0, other.waiting - other.ready - other.starting) for other, count in others)


@given(SHELVES, st.integers(1, 80))
def test_only_idle_shelves_make_room(shelves: list[Census], high: int) -> None:
    """A ready VM is destroyed only for another template's callers, and never one that somebody waits for."""
    due = plan(shelves, max_size=high, concurrent_starts=100)
    for shelf, count in zip(shelves, due.evictions, strict=True):
        assert 0 <= count <= shelf.ready
        assert not (count and shelf.waiting)
    if any(due.evictions):
        assert any(shelf.waiting > shelf.ready + shelf.starting for shelf in shelves)


@given(STALE)
def test_a_young_lease_delays_one_start_at_most(shelf: Census) -> None:
    """It delays the replacement of the VM that it took: none that somebody waits for, and no empty pool's."""
    delayed = replace(shelf, has_young_lease=False).wanted - replace(shelf, has_young_lease=True).wanted
    assert delayed in (0, 1)
    if delayed:
        assert shelf.ready > shelf.stale
        assert shelf.ready - shelf.stale + shelf.starting == shelf.target + shelf.waiting - 1


@given(st.integers(2, 20), st.integers(0, 20))
def test_the_second_claim_ends_the_delay(target: int, taken: int) -> None:
    """One of a full warm set is replaced later, all of several at once; so claims, however many, never empty a pool."""
    ready = max(0, target - taken)
    shelf = Census(0, ready, taken, 0, 0, target, has_young_lease=True)
    assert shelf.wanted == (0 if taken <= 1 else target - ready)


def test_full_pool_makes_room_for_another_templates_caller() -> None:
    """One waits, all room is taken by VMs that are ready for nobody: one of them goes."""
    due = plan([Census(0, 4, 0, 0, 0, 4), Census(0, 0, 0, 0, 1)], max_size=4, concurrent_starts=2)
    assert (due.starts, due.evictions) == ([0, 0], [1, 0])
    due = plan([Census(0, 3, 0, 1, 0, 4), Census(0, 0, 0, 0, 1)], max_size=4, concurrent_starts=2)
    assert (due.starts, due.evictions) == ([0, 0], [0, 0])


def test_room_goes_to_the_most_senior_of_all_templates() -> None:
    """Whose caller waits longest, not whose template is named first; each caller counts."""
    first, second = Census(0, 0, 0, 0, 3, next_callers=(5.0, 6.0, 9.0)), Census(0, 0, 0, 0, 2, next_callers=(4.0, 7.0))

    def starts(room: int, **changes: Any) -> list[int]:
        return plan([replace(first, **changes), second], max_size=room, concurrent_starts=4).starts

    assert [starts(room) for room in range(6)] == [[0, 0], [0, 1], [1, 1], [2, 1], [2, 2], [2, 2]]
    assert starts(1, may_start=False) == [0, 1]
    assert starts(4, is_on_probation=True) == [1, 2]


def test_on_probation_one_start_at_a_time_is_tried() -> None:
    """Whoever waits, and whatever is missing."""
    tried = Census(0, 0, 0, 0, 2, target=5, is_on_probation=True)
    assert plan([tried], max_size=9, concurrent_starts=9).starts == [1]
    assert plan([replace(tried, starting=1)], max_size=9, concurrent_starts=9).starts == [0]
    assert plan([replace(tried, is_on_probation=False)], max_size=9, concurrent_starts=9).starts == [7]


def test_no_more_is_evicted_for_a_template_on_probation_than_may_be_started() -> None:
    """It gets room for its one start, and a healthy template keeps the rest."""

    def evictions(starting: int, ready: int) -> list[int]:
        broken, healthy = Census(starting, 0, 0, 0, 9, is_on_probation=True), Census(0, ready, 0, 0, 0, target=9)
        return plan([broken, healthy], max_size=10, concurrent_starts=4).evictions

    assert evictions(starting=1, ready=9) == [0, 0]
    assert evictions(starting=0, ready=10) == [0, 1]


def test_back_off_grows_and_is_bounded() -> None:
    """First failures are retried at once; then the pauses double up to half a minute."""
    pauses = [back_off(failures) for failures in range(FAILURES_UNTIL_BREAK + 10)]
    assert pauses[:FAILURES_UNTIL_BREAK] == [0.0] * FAILURES_UNTIL_BREAK
    assert pauses == sorted(pauses)
    assert pauses[FAILURES_UNTIL_BREAK:] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
    assert (FAILURES_UNTIL_BREAK, YOUNG_LEASE) == (3, 0.1)
    assert back_off(10_000) == 30.0


@given(st.floats(0.01, 1e6), st.integers(1, 100_000))
def test_times_to_live_are_spread_within_bounds(ttl: float, number: int) -> None:
    """Never longer than configured, never shorter than three quarters of it."""
    assert 0.75 * ttl <= spread(ttl, number) <= ttl
    assert math.isclose(spread(100.0, 1), 75.0 + 25.0 * 0.6180339887498949)


def test_vms_of_one_start_do_not_expire_together() -> None:
    """Ten VMs that are started at once leave gaps of at least a hundredth of the time to live."""
    ends = sorted(spread(100.0, number) for number in range(1, 11))
    assert min(later - earlier for earlier, later in pairwise(ends)) > 1.0


@given(st.integers(0, 10), st.integers(0, 100), st.floats(0, 1000), st.floats(0, 10))
def test_target_stays_within_its_bounds(low: int, most: int, rate: float, seconds: float) -> None:
    """However many claims come, no fewer than `min_size` and no more than `max_ready` are kept."""
    assert low <= target_ready(low, most, rate, seconds) <= max(low, most)


def test_target_is_half_as_much_again_as_is_claimed_during_a_start() -> None:
    """Ten claims a second and starts of 0.2 s: two, and a half of that for bursts."""
    assert [target_ready(0, 9, rate, 0.2) for rate in (0.0, 2.0, 10.0, 11.0, 100.0)] == [0, 1, 3, 4, 9]
    assert [target_ready(4, most, 100.0, 0.2) for most in (3, 4, 5)] == [4, 4, 5]


def test_as_many_are_woken_as_wait_or_should_run() -> None:
    """Less those that run or are on the way, and no more than there are."""
    due = {"running": 1, "waking": 1, "paused": 9, "waiting": 3, "wanted": 2}
    assert wakes_due(**due) == 3
    for change, count in (({"running": 3}, 1), ({"waking": 4}, 0), ({"paused": 2}, 2), ({"waiting": 0}, 0)):
        assert wakes_due(**(due | change)) == count
    assert wakes_due(**(due | {"wanted": 5})) == 6
    assert wakes_due(**(due | {"running": 9})) == 0


def test_nothing_waits_for_a_lease_that_is_not_young() -> None:
    """By default none is; with one, a lone ready VM is enough to wait, an empty shelf or a caller is not."""
    assert Census(0, 1, 1, 0, 0, target=2).wanted == 1
    young = Census(0, 1, 1, 0, 0, target=2, has_young_lease=True)
    assert young.wanted == 0
    assert replace(young, ready=0).wanted == 2
    assert replace(young, ready=0, starting=1).wanted == 1
    assert replace(young, ready=3, waiting=2).wanted == 1
    assert replace(young, stale=1).wanted == 2
    assert Census(2, 1, 0, 0, 5).wanted == 2


def test_as_many_are_evicted_as_callers_lack_room_for() -> None:
    """From the first idle shelves on; what is ending, starting or free is room that comes without."""
    idle, callers = Census(0, 1, 0, 0, 0, 1), Census(0, 0, 0, 0, 2)

    def evictions(*shelves: Census, size: int) -> list[int]:
        return plan(shelves, max_size=size, concurrent_starts=1).evictions

    assert evictions(idle, idle, callers, size=2) == [1, 1, 0]
    assert evictions(idle, idle, replace(callers, waiting=1), size=2) == [1, 0, 0]
    assert evictions(idle, idle, replace(callers, ending=1), size=3) == [1, 0, 0]
    assert evictions(idle, idle, callers, size=3) == [1, 0, 0]
    assert evictions(idle, idle, callers, size=4) == [0, 0, 0]
    assert evictions(replace(idle, ready=2, waiting=1), callers, size=2) == [0, 0]


def test_rate_follows_the_claims_and_forgets_them() -> None:
    """Two claims a second for two minutes are measured as such; five minutes later they are nearly gone."""
    rate = Rate()
    for tick in range(240):
        rate.add(tick / 2)
    assert 1.8 < rate.per_second(120.0) < 2.2
    assert rate.per_second(420.0) < 0.01


def test_a_claim_counts_half_after_half_a_minute() -> None:
    """From the first one on, and a clock that stands still takes nothing away."""
    rate = Rate()
    assert rate.per_second(10.0) == 0.0
    rate.add(10.0)
    whole = rate.per_second(10.0)
    assert math.isclose(whole, math.log(2) / 30)
    assert math.isclose(rate.per_second(40.0), whole / 2)
    assert math.isclose(rate.per_second(9.0), whole)
    rate.add(40.0)
    assert math.isclose(rate.per_second(40.0), 1.5 * whole)


@given(st.floats(0, 1000), st.integers(-5, 5), st.floats(0, 60))
def test_waiting_outweighs_any_priority_in_the_end(now: float, priority: int, step: float) -> None:
    """Who waited `priority_seconds` for each step is as senior as who comes now with that priority."""
    assert seniority(now, priority, step) == now - priority * step


def _stale(ready: int, stale: int) -> Census:
    return Census(starting=0, ready=ready, leased=0, ending=0, waiting=0, target=3, stale=stale)


def test_stale_vms_go_only_when_fresh_ones_have_come() -> None:
    """With room, as many start as are stale, and those beyond the target go; without, one goes, but never the last."""
    begun = plan([_stale(3, 3)], max_size=8, concurrent_starts=8)
    assert (begun.starts, begun.evictions) == ([3], [0])
    half = plan([_stale(5, 3)], max_size=5, concurrent_starts=8)
    assert (half.starts, half.evictions) == ([0], [2])
    full = plan([_stale(3, 3)], max_size=3, concurrent_starts=8)
    assert (full.starts, full.evictions) == ([0], [1])
    last = plan([_stale(1, 1)], max_size=1, concurrent_starts=8)
    assert (last.starts, last.evictions) == ([0], [0])
    failing = replace(_stale(3, 3), may_start=False)
    assert plan([failing], max_size=3, concurrent_starts=8).evictions == [0]
    done = plan([_stale(3, 0)], max_size=8, concurrent_starts=8)
    assert (done.starts, done.evictions) == ([0], [0])


@given(COUNT, COUNT, COUNT, COUNT, COUNT, st.integers(0, 6), st.integers(0, 5))
def test_a_roll_over_never_empties_the_warm_set(
    ready: int, stale: int, starting: int, ending: int, leased: int, target: int, room: int
) -> None:
    """Whatever the state: evictions leave the target ready, or all but one where there is no room, and at least one."""
    census = Census(starting, ready, leased, ending, 0, target, stale=min(stale, ready))
    due = plan([census], max_size=census.alive + room, concurrent_starts=4)
    left = ready - due.evictions[0]
    assert due.evictions[0] <= census.stale
    assert left >= min(ready, target) - (1 if room == 0 else 0)
    assert left >= min(ready, 1) or target == 0
    assert census.alive + sum(due.starts) <= census.alive + room


def test_a_successor_is_compared_by_its_shortest_start() -> None:
    """One slow start of three is the host's fault; without a live one to compare there is nothing against it."""
    assert too_slow([0.1, 0.1, 0.9], [0.19, 5.0, 5.0], 2.0) is None
    assert too_slow([], [9.0], 2.0) is None
    fault = too_slow([0.1, 0.2], [0.21, 0.3], 2.0)
    assert fault is not None
    assert "0.210 s" in fault


def test_renewal_backs_off_up_to_an_hour() -> None:
    """Twice as long after each failure, never shorter than the interval."""
    assert [renewal_back_off(30.0, failures) for failures in (0, 1, 2, 20)] == [30.0, 60.0, 120.0, 3600.0]
    assert renewal_back_off(7200.0, 3) == 7200.0
