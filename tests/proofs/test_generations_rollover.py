"""A pool that rolls from one template generation to the next, in virtual time, under load and under faults."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, cast

import anyio
import pytest

from sandbox.config import PoolConfig
from sandbox.errors import PoolClosed, StateError, TemplateError
from sandbox.event import EventKind, LifeEvent
from sandbox.pool.lease import Lease
from sandbox.pool.pool import VMPool
from sandbox.vm import VMSource
from tests.fakes.cancelling import Points
from tests.fakes.generations import FakeSeries
from tests.fakes.virtual_time import VirtualTimeLoop
from tests.fakes.world import FakeVM, FakeWorld

INTERVAL = 10.0


class Scene:
    """A pool over a series of fakes, and what it has told."""

    def __init__(self, **options: Any) -> None:
        self.world = FakeWorld()
        self.series = FakeSeries(self.world)
        self.told: list[LifeEvent] = []
        self.lowest: int | None = None
        config = PoolConfig(**{"min_size": 4, "max_size": 8, "template_check_interval": INTERVAL, **options})
        self.pool = VMPool(config, source=cast("VMSource", self.series.first()), observers=[self.hear])

    def hear(self, event: LifeEvent) -> None:
        self.told.append(event)
        if self.lowest is not None:
            self.lowest = min(self.lowest, self.pool.statistics().ready)

    def events(self, kind: EventKind) -> list[LifeEvent]:
        return [event for event in self.told if event.kind is kind]

    @property
    def live(self) -> int:
        return self.pool.generations()[0].generation

    async def wait_rolled(self, generation: int = 2) -> None:
        """Return when this is the live generation, every warm VM is of it, and as many as wanted are."""
        with anyio.fail_after(1000):
            while True:
                live, *others = self.pool.generations()
                full = live.ready >= self.pool.config.min_size
                if full and live.generation == generation and not any(other.ready + other.starting for other in others):
                    return
                await self.pool._keeper.changed.wait()


@pytest.fixture
def play() -> Iterator[Callable[[Coroutine[Any, Any, object]], object]]:
    """Run a scene in virtual time."""
    loop = VirtualTimeLoop()
    yield loop.run_until_complete
    assert not asyncio.all_tasks(loop)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


Play = Callable[[Coroutine[Any, Any, object]], object]


def test_drift_is_noticed_and_the_pool_rolls_over_without_falling_below_its_floor(play: Play) -> None:
    """The next generation is baked, tried and used; all warm VMs are replaced; the warm set never shrinks."""
    scene = Scene()

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            lease = await pool.claim()
            await pool.wait_ready()
            scene.lowest, scene.series.wanted = pool.statistics().ready, "second"
            await scene.wait_rolled()
            assert not lease.has_ended
            assert cast("FakeVM", lease.vm).generation == 1
            assert scene.lowest >= pool.config.min_size
            assert scene.live == 2
            await lease.release()
            async with pool.acquire() as vm:
                assert cast("FakeVM", vm).generation == 2
            scene.lowest = None
        assert scene.world.most_alive <= pool.config.max_size + 1
        kinds = [
            EventKind.TEMPLATE_DRIFTED,
            EventKind.TEMPLATE_BAKED,
            EventKind.GENERATION_CHANGED,
        ]
        assert [event.kind for event in scene.told if event.kind in kinds] == kinds
        changed = scene.events(EventKind.GENERATION_CHANGED)[0].fields
        assert (changed["former"], changed["generation"], changed["why"]) == (1, 2, "image")

    play(story())
    assert not scene.world.alive


@pytest.mark.parametrize("running", [0, 1, 4])
def test_roll_over_under_load_fails_nobody(play: Play, running: int) -> None:
    """Callers who claim and release all the time get a VM each, before, during and after, however few VMs run."""
    scene = Scene(running_ready=running, max_size=10)
    source = random.Random(running)
    seen: list[int] = []

    async def caller(pool: VMPool) -> None:
        for _ in range(60):
            async with pool.acquire(timeout=5) as vm:
                seen.append(cast("FakeVM", vm).generation)
                await anyio.sleep(source.uniform(0.05, 0.5))

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(caller(pool))
                scene.series.wanted = "second"
            await scene.wait_rolled()
            assert pool.statistics().claimed == len(seen) == 180

    play(story())
    assert set(seen) == {1, 2}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_full_pool_rolls_over_and_is_never_empty(play: Play, size: int) -> None:
    """Without room beside the warm set one VM goes at a time; a pool's only VM stays until its time to live ends."""
    scene = Scene(min_size=size, max_size=size, ttl=100.0)

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            scene.lowest, scene.series.wanted = size, "second"
            while scene.live == 1:
                await pool._keeper.changed.wait()
            if size == 1:  # it is replaced when its own time is over, as always
                await anyio.sleep(INTERVAL)
                assert [generation.ready for generation in pool.generations()] == [0, 1]
                scene.lowest = None
            await scene.wait_rolled()
            assert scene.lowest is None or scene.lowest >= size - 1
            scene.lowest = None

    play(story())


@pytest.mark.parametrize("fault", ["slow", "broken"])
def test_failing_canary_is_thrown_away_and_tried_ever_more_rarely(play: Play, fault: str) -> None:
    """The pool stays on the live generation, tells each failure, backs off, and takes the first good one."""
    scene = Scene(canary_slowdown=1.5)
    scene.series.next_is_slow_by = 1.0 if fault == "slow" else 0.0
    scene.series.next_can_run = fault != "broken"

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            scene.series.wanted = "second"
            await anyio.sleep(3600)
            failed = scene.events(EventKind.CANARY_FAILED)
            assert 5 <= len(failed) <= 12
            assert [event.fields["failures"] for event in failed] == list(range(1, len(failed) + 1))
            assert scene.series.thrown_away == [event.fields["generation"] for event in failed]
            assert len(scene.events(EventKind.TEMPLATE_DRIFTED)) == 1
            assert not scene.events(EventKind.GENERATION_CHANGED)
            assert scene.live == 1
            assert pool.statistics().failed_starts == 0
            with pytest.raises(TemplateError, match="clone"):
                await pool.roll_over()
            scene.series.next_is_slow_by, scene.series.next_can_run = 0.0, True
            generation = await pool.roll_over()
            await scene.wait_rolled(generation)
            assert scene.series.published == [generation]

    play(story())


def test_full_host_says_nothing_of_a_successor(play: Play) -> None:
    """No room for a canary is told as such, and held against no generation; with room, the pool rolls over."""
    scene = Scene()

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            scene.world.room, scene.series.wanted = len(scene.world.alive), "second"
            await anyio.sleep(600)
            failed = scene.events(EventKind.TEMPLATE_BAKE_FAILED)
            assert {event.fields["code"] for event in failed} == {"HOST_RESOURCES"}
            assert not scene.events(EventKind.CANARY_FAILED)
            assert pool._keeper.successions["default"]._beyond == 0
            scene.world.room = None
            await scene.wait_rolled(await pool.roll_over())

    play(story())


def test_look_without_a_thread_ends_no_lease(play: Play) -> None:
    """It is told as a lack of resources, and made again."""
    scene = Scene()
    scene.series.drift_fails = RuntimeError("can't start new thread")

    async def story() -> None:
        async with scene.pool as pool:
            lease = await pool.claim()
            await anyio.sleep(600)
            assert not lease.has_ended
            failed = scene.events(EventKind.TEMPLATE_BAKE_FAILED)
            assert {event.fields["code"] for event in failed} == {"HOST_RESOURCES"}
            scene.series.drift_fails, scene.series.wanted = None, "second"
            await scene.wait_rolled(await pool.roll_over())

    play(story())


def test_roll_over_is_done_though_old_templates_stay(play: Play) -> None:
    """What cannot be removed is no failure of the new one."""
    scene = Scene()
    scene.series.tidy_fails = True

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            scene.series.wanted = "second"
            assert await pool.roll_over() == 2
            await scene.wait_rolled(2)
            assert not scene.events(EventKind.TEMPLATE_BAKE_FAILED)

    play(story())


def test_failing_bake_leaves_the_pool_as_it_is(play: Play) -> None:
    """Each failure is told, and callers are served from the live generation meanwhile."""
    scene = Scene()
    scene.series.bake_fails = True

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            scene.series.wanted = "second"
            await anyio.sleep(600)
            assert len(scene.events(EventKind.TEMPLATE_BAKE_FAILED)) >= 3
            async with pool.acquire(timeout=1) as vm:
                assert cast("FakeVM", vm).generation == 1

    play(story())


def test_roll_back_returns_at_once_and_stays(play: Play) -> None:
    """New starts come from the former generation; the one that was left is not returned to, a third one is taken."""
    scene = Scene()

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            with pytest.raises(TemplateError, match="no generation before"):
                await pool.roll_back()
            scene.series.wanted = "second"
            assert await pool.roll_over() == 2
            await scene.wait_rolled()
            before = asyncio.get_running_loop().time()
            assert await pool.roll_back() == 1
            assert asyncio.get_running_loop().time() - before < 0.01
            await scene.wait_rolled(1)
            await anyio.sleep(50 * INTERVAL)
            assert scene.live == 1
            scene.series.wanted = "third"
            await anyio.sleep(50 * INTERVAL)
            assert scene.live == 3
            assert await pool.roll_back() == 1
            assert await pool.roll_over() == 4

    play(story())


def test_roll_back_while_the_next_generation_is_made_wins(play: Play) -> None:
    """A template that was begun before is thrown away, and whoever ordered it is told."""
    scene = Scene()

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            await pool.roll_over()
            order = asyncio.create_task(pool.roll_over())
            await anyio.sleep(1)
            assert await pool.roll_back() == 1
            with pytest.raises(StateError, match="rolled back"):
                await order
            assert scene.live == 1
            assert scene.series.thrown_away == [3]

    play(story())


@pytest.mark.parametrize("seconds", [0.0, 2.0, 5.05, 5.3, 6.0, 6.6, 6.9])
def test_closing_in_the_middle_leaves_nothing(play: Play, seconds: float) -> None:
    """Whether it drifts, bakes, tries or rolls: closing ends it, throws away what is unfinished and tells who waits."""
    scene = Scene()

    async def story() -> None:
        await scene.pool.open()
        await scene.pool.wait_ready()
        order = asyncio.create_task(scene.pool.roll_over())
        await anyio.sleep(seconds)
        await scene.pool.aclose()
        assert not scene.world.alive
        assert scene.series.bakes_in_progress == 0
        with suppress(PoolClosed):
            assert await order == 2
        with pytest.raises(PoolClosed):
            await scene.pool.roll_over()
        record = scene.pool.statistics()
        assert record.created == record.destroyed

    play(story())


def test_every_place_where_a_roll_over_waits_is_cancelled(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    """The caller's wait, and the pool's own task at each suspension: nothing is left, and nobody waits for ever."""

    async def one(at: int | None) -> int:
        scene = Scene(min_size=1, max_size=3)
        points = Points(at)
        async with scene.pool as pool:
            await pool.wait_ready()
            succession = pool._keeper.successions["default"]
            succession._served = []
            task = asyncio.create_task(points.drive(succession._renew(is_ordered=True)))
            with suppress(asyncio.CancelledError):
                await task
            record = pool.statistics()
            assert record.created == record.destroyed + record.starting + record.ready + record.leased + record.ending
            assert scene.series.bakes_in_progress == 0
            async with pool.acquire(timeout=5):
                pass
        assert not scene.world.alive
        return points.count

    async def story() -> None:
        count = await one(None)
        assert count > 10
        for at in range(count):
            await one(at)
        with capsys.disabled():
            print(f"roll-over: {count} suspension points cancelled")  # noqa: T201 - a figure

    play(story())


def test_cancelled_wait_for_a_roll_over_does_not_end_it(play: Play) -> None:
    """The generation changes though nobody waits any more."""
    scene = Scene()

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            with anyio.move_on_after(1):
                await pool.roll_over()
            await anyio.sleep(10)
            assert scene.live == 2

    play(story())


def test_other_sources_have_no_generations(play: Play) -> None:
    """A pool of something that is no template says so."""

    async def story() -> None:
        async with VMPool(PoolConfig(min_size=1), source=cast("VMSource", FakeWorld())) as pool:
            with pytest.raises(StateError, match="no generations"):
                await pool.roll_over()
            lease: Lease = await pool.claim()
            assert lease.receipt is None

    play(story())
