"""What the pool says of itself is exact: durations, reasons, counts and refusals. Fake VMs, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from sandbox.config import PoolConfig, TemplateConfig, TemplateTarget
from sandbox.errors import ConfigError, PoolTimeout, StartError, StateError
from sandbox.event import EventKind, LifeEvent
from sandbox.pool.broadcast import Broadcast
from sandbox.pool.health import LOOK_SECONDS, Health
from sandbox.pool.pool import VMPool
from sandbox.vm import VM, VMSource
from tests.fakes.virtual_time import VirtualTimeLoop
from tests.fakes.world import FakeVM, FakeWorld

START, END = 0.2, 0.02
about = pytest.approx


def play(scene: Coroutine[Any, Any, None]) -> None:
    """Run a scene to its end; its seconds take no time."""
    loop = VirtualTimeLoop()
    try:
        loop.run_until_complete(scene)
    finally:
        loop.close()


@asynccontextmanager
async def opened(world: FakeWorld, told: list[LifeEvent] | None = None, **config: Any) -> AsyncIterator[VMPool]:
    observers = [] if told is None else [told.append]
    settings = PoolConfig(**{"min_size": 0, "max_size": 1, **config})
    async with VMPool(settings, source=cast("VMSource", world), observers=observers) as pool:
        yield pool


def seconds(told: list[LifeEvent], kind: EventKind) -> float | None:
    (found,) = [event for event in told if event.kind is kind]
    return found.seconds


def test_each_duration_is_that_of_what_it_names() -> None:
    """A start of 0.2 s that somebody waits for, a lease of one second, an end of 0.02 s."""

    async def scene() -> None:
        told: list[LifeEvent] = []
        async with opened(FakeWorld(start_seconds=START, end_seconds=END), told) as pool:
            await anyio.sleep(5)
            lease = await pool.claim()
            assert lease.vm.timings == {"queue": about(START), "claim": 0.0}
            assert lease.vm.origin == "boot"
            await anyio.sleep(1)
            await lease.release()
        assert seconds(told, EventKind.VM_STARTED) == about(START)
        assert seconds(told, EventKind.LEASE_BEGAN) == about(START)
        assert seconds(told, EventKind.LEASE_ENDED) == about(1.0)
        assert seconds(told, EventKind.VM_DESTROYED) == about(START + 1.0 + END)

    play(scene())


def test_hit_waits_for_nothing_and_says_so() -> None:
    """A paused VM that is woken for its caller tells how long that took; a running one is lent at once."""

    async def scene() -> None:
        told: list[LifeEvent] = []
        world = FakeWorld(start_seconds=START)
        async with opened(world, told, min_size=2, max_size=2, running_ready=1) as pool:
            await pool.wait_ready()
            await anyio.sleep(1)
            lease = await pool.claim()
            assert (lease.vm.origin, lease.vm.timings) == ("hit", {"queue": 0.0, "claim": 0.0})
            await anyio.sleep(0.02)
            assert seconds(told, EventKind.LEASE_BEGAN) == 0.0
            assert seconds(told, EventKind.VM_WOKEN) == about(0.006)

    play(scene())


def test_starts_that_fail_are_told_at_once_and_tried_again_after_the_back_off() -> None:
    """Three failures in a row are the end of waiting; half a second later a start succeeds, and all is forgotten."""

    async def scene() -> None:
        told: list[LifeEvent] = []
        world = FakeWorld(start_seconds=START)
        world.fail_next = 3
        began = anyio.current_time()
        async with opened(world, told, min_size=1) as pool:
            with pytest.raises(StartError, match="lets this start fail"):
                await pool.claim()
            assert anyio.current_time() - began == about(3 * START)
            assert seconds(told, EventKind.CLAIM_REFUSED) == about(3 * START)
            for refused in (pool.claim(timeout=10), pool.wait_ready()):
                with pytest.raises(StartError, match="lets this start fail"):
                    await refused
            assert anyio.current_time() - began == about(3 * START)
            assert world.started == pool.statistics().failed_starts == 3
            await anyio.sleep(0.49)
            assert world.started == 3
            await anyio.sleep(0.02)
            assert world.started == 4
            await pool.wait_ready()
            assert anyio.current_time() - began == about(3 * START + 0.5 + START)
            shelf = pool._keeper.shelves["default"]
            assert (shelf.failures, shelf.last_failure, shelf.resume_at, shelf.is_broken) == (0, None, 0.0, False)

    play(scene())


def test_two_failures_are_no_reason_to_refuse() -> None:
    """Who waits is served by the third start, which follows at once."""

    async def scene() -> None:
        world = FakeWorld(start_seconds=START)
        world.fail_next = 2
        async with opened(world) as pool:
            lease = await pool.claim()
            assert lease.vm.timings["queue"] == about(3 * START)

    play(scene())


def test_time_out_says_what_it_waited_for() -> None:
    """Who holds what, what is on its way, who else waits, and why the last start failed."""

    async def scene() -> None:
        world = FakeWorld(start_seconds=START)
        async with opened(world) as pool:
            _held = await pool.claim()
            other = asyncio.create_task(pool.claim(timeout=2))
            await anyio.lowlevel.checkpoint()
            with pytest.raises(PoolTimeout) as late:
                await pool.claim(timeout=1)
            assert str(late.value) == (
                "no VM came free within 1 s: 1 of at most 1 are leased, 0 are starting, 1 more callers wait; "
                "raise max_size or the time-out"
            )
            with pytest.raises(PoolTimeout):
                await other
        world.fail_next = 1
        async with opened(world) as pool:
            with pytest.raises(PoolTimeout, match=r"1 are starting.*; the last start failed: the world lets this"):
                await pool.claim(timeout=1.5 * START)

    play(scene())


def test_pool_is_opened_once_and_shows_its_state() -> None:
    """A second `open` is refused, also after the end; nothing of the first is lost by it."""

    async def scene() -> None:
        pool = VMPool(PoolConfig(min_size=1, max_size=1), source=cast("VMSource", FakeWorld()))
        assert (pool.is_closed, repr(pool).split()[1]) == (False, "closed")
        await pool.open()
        with pytest.raises(StateError, match="opened before"):
            await pool.open()
        await pool.wait_ready()
        assert repr(pool) == "<VMPool open ready=1 leased=0 starting=0 ending=0 waiting=0>"
        assert not pool.is_closed
        await pool.aclose()
        assert pool.is_closed
        with pytest.raises(StateError, match="opened before"):
            await pool.open()

    play(scene())


def test_vm_is_ended_by_its_name_and_no_other() -> None:
    """What rules do to a VM: the lease ends, the reason is told, its neighbour stays."""

    async def scene() -> None:
        told: list[LifeEvent] = []
        async with opened(FakeWorld(), told, max_size=2) as pool:
            first, second = await pool.claim(), await pool.claim()
            assert not pool._end_vm("nobody")
            assert pool._end_vm(first.vm.name)
            assert not pool._end_vm(first.vm.name)
            assert (first.has_ended, second.has_ended) == (True, False)
            assert (repr(first).split()[-1], repr(second).split()[-1]) == ("ended>", "held>")
            (ended,) = [event for event in told if event.kind is EventKind.LEASE_ENDED]
            assert (ended.vm, ended.fields["why"]) == (first.vm.name, "killed")
            assert list(pool._keeper.vms()) == [second.vm]

    play(scene())


@pytest.mark.parametrize(
    ("ttl", "idle", "ends"), [(None, 1.0, 1.0), (0.5, 1.0, 0.5), (3.0, 1.0, 1.0), (3.0, None, 3.0)]
)
def test_lease_ends_at_the_earlier_of_its_bounds(ttl: float | None, idle: float | None, ends: float) -> None:
    """Its time to live, or so long without use."""

    async def scene() -> None:
        async with opened(FakeWorld(), lease_ttl=ttl, idle_lease_timeout=idle) as pool:
            lease = await pool.claim()
            cast("FakeVM", lease.vm).used_at = began = anyio.current_time()
            assert lease.left == (None if ttl is None else about(ttl))
            await lease.wait_ended()
            assert anyio.current_time() - began == about(ends)

    play(scene())


@pytest.mark.parametrize("running", [0, 1])
def test_time_before_a_lease_is_none_of_its_idleness(running: int) -> None:
    """A VM that was warm for longer than a lease may be idle is lent for as long as any other."""

    async def scene() -> None:
        async with opened(FakeWorld(), idle_lease_timeout=1.0, min_size=1, running_ready=running) as pool:
            await pool.wait_ready()
            await anyio.sleep(5)
            lease = await pool.claim()
            began = anyio.current_time()
            await anyio.sleep(0.5)
            assert not lease.has_ended
            await lease.wait_ended()
            assert anyio.current_time() - began == about(1.0)

    play(scene())


@pytest.mark.parametrize("how", ["released", "lost"])
def test_listener_that_ends_the_lease_of_which_it_hears_changes_no_count(how: str) -> None:
    """One end is one end, with one reason, whatever is called while it is told."""

    async def scene() -> None:
        told: list[LifeEvent] = []
        async with opened(FakeWorld(), told) as pool:
            lease = await pool.claim()

            def end_again(event: LifeEvent) -> None:
                if event.kind is EventKind.LEASE_ENDED:
                    lease.release_nowait()
                    pool._end_vm(event.vm)

            pool.observe(end_again)
            if how == "lost":
                cast("FakeVM", lease.vm).die()
            else:
                lease.release_nowait()
            await lease.wait_ended()
            state = pool.statistics()
            assert (state.claimed, state.released + state.lost, getattr(state, how)) == (1, 1, 1)
        (ended,) = [event for event in told if event.kind is EventKind.LEASE_ENDED]
        assert ended.fields["why"] == how

    play(scene())


def test_more_than_a_pool_ever_keeps_ready_is_not_waited_for() -> None:
    """Neither a number that it cannot reach, nor sizes of templates that do not fit into it together."""

    async def scene() -> None:
        async with opened(FakeWorld(), min_size=1, max_size=2, max_ready=2) as pool:
            await pool.wait_ready()
            with pytest.raises(ConfigError, match=r"keeps 2 VMs ready at most, not 3"):
                await pool.wait_ready(3)
        other = TemplateTarget(template=TemplateConfig(), min_size=1)
        with pytest.raises(ValueError, match=r"the sum of all min_size, 3, is larger than max_size 2"):
            PoolConfig(min_size=2, max_size=2, more={"other": other})

    play(scene())


def test_renewed_lease_lives_from_now_on() -> None:
    """Neither longer nor shorter than asked for; None is for ever."""

    async def scene() -> None:
        async with opened(FakeWorld(), lease_ttl=2.0) as pool:
            lease = await pool.claim()
            await anyio.sleep(1.5)
            lease.renew(5.0)
            assert lease.left == about(5.0)
            await anyio.sleep(4.9)
            assert not lease.has_ended
            lease.renew(None)
            assert lease.left is None
            await anyio.sleep(1000)
            assert not lease.has_ended
            lease.renew(1.0)
            with anyio.fail_after(1.1):
                await lease.wait_ended()
            assert lease.left == 0.0

    play(scene())


def test_duration_of_a_start_is_learned_slowly() -> None:
    """One slow start moves the estimate by three tenths of the difference; the first one is taken as it is."""

    async def scene() -> None:
        world = FakeWorld(start_seconds=START)
        async with opened(world, max_size=2) as pool:
            shelf = pool._keeper.shelves["default"]
            _first = await pool.claim()
            assert shelf._start_seconds == about(START)
            world.start_seconds = START + 1.0
            _second = await pool.claim()
            assert shelf._start_seconds == about(START + 0.3)

    play(scene())


def test_listener_that_fails_or_tells_something_itself_changes_nothing_for_the_others() -> None:
    """All hear everything, in one order; one that has gone hears nothing more, and may go twice."""
    heard: list[list[str]] = [[], []]
    broadcast = Broadcast("pool")

    def fail(_: LifeEvent) -> None:
        raise ZeroDivisionError

    def answer(event: LifeEvent) -> None:
        heard[0].append(event.kind)
        if event.kind is EventKind.POOL_OPENED:
            broadcast.tell(EventKind.VM_PAUSED)

    leave = broadcast.add(answer)
    broadcast.add(fail)
    broadcast.add(lambda event: heard[1].append(event.kind))
    broadcast.tell(EventKind.POOL_OPENED)
    assert heard == [["pool_opened", "vm_paused"]] * 2
    leave()
    leave()
    broadcast.tell(EventKind.POOL_CLOSED)
    assert (len(heard[0]), heard[1][-1]) == (2, "pool_closed")


def test_only_what_is_found_stopped_twice_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that was seen stopped once may be in a debugger's hands for a moment."""
    looks = iter([{1, 2}, {1, 3}, {3}])
    asked: list[list[int]] = []
    lost: list[int] = []

    def stopped(pids: list[int]) -> set[int]:
        asked.append(pids)
        return next(looks, set())

    monkeypatch.setattr("sandbox.pool.health.stopped", stopped)

    class Stopped:
        def __init__(self, pid: int) -> None:
            self.pid = pid

        def declare_stopped(self) -> None:
            lost.append(self.pid)

    async def scene() -> None:
        health = Health(lambda: [cast("VM", Stopped(pid)) for pid in (0, 1, 2, 3)], Broadcast("books"))
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            group.start_soon(health.serve)
            while len(asked) < 4:  # noqa: ASYNC110 - the clock jumps
                await anyio.sleep(LOOK_SECONDS / 10)
            health.stop()
        assert anyio.current_time() - began >= 4 * LOOK_SECONDS
        assert asked[0] == [1, 2, 3]
        assert lost == [1, 3]

    play(scene())
