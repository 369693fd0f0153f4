"""What goes wrong in a task of the pool that nobody foresaw: it is told and counted, and harms no lease."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any, NoReturn, cast

import anyio
import pytest

from sandbox.config import PoolConfig
from sandbox.errors import StartError, StateNotLoaded
from sandbox.event import EventKind, LifeEvent
from sandbox.pool.pool import VMPool
from sandbox.pool.supervision import contained, supervise
from sandbox.vm import VMSource
from tests.fakes.world import FakeVM, FakeWorld
from tests.proofs import test_generations_rollover
from tests.proofs.test_generations_rollover import INTERVAL, Play, Scene

play = test_generations_rollover.play

UNFORESEEN = [
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ZeroDivisionError("division by zero"),
    PermissionError(13, "Permission denied", "/somewhere"),
    ExceptionGroup("two at once", [KeyError("a"), RuntimeError("b")]),
]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_a_look_that_fails_is_told_and_made_again(
    error: Exception, play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    """Leases go on, whoever ordered a roll-over hears of it, looks become rarer, and the next that works rolls over."""
    scene = Scene()
    scene.series.drift_fails = error

    async def story() -> None:
        async with scene.pool as pool:
            lease = await pool.claim()
            with pytest.raises(StartError, match="the look after the template failed"):
                await pool.roll_over()
            await anyio.sleep(40 * INTERVAL)
            assert not lease.has_ended
            failures = [event.fields["failures"] for event in scene.events(EventKind.TEMPLATE_BAKE_FAILED)]
            assert failures == list(range(1, len(failures) + 1))
            assert 3 <= len(failures) < 10
            scene.series.drift_fails, scene.series.wanted = None, "second"
            await scene.wait_rolled(await pool.roll_over())
            assert not lease.has_ended

    play(story())
    caplog.clear()


class Unlucky(int):
    """A process id that cannot be looked at."""

    def __bool__(self) -> NoReturn:
        raise ZeroDivisionError("of all numbers")


def test_the_look_for_stopped_vms_goes_on_after_a_failure(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """It is told each time, with how many failed in a row; the lease is none the worse."""
    scene = Scene()

    async def story() -> None:
        async with scene.pool as pool:
            lease = await pool.claim()
            for vm in scene.world.alive:
                vm.pid = Unlucky()
            await anyio.sleep(20)
            told = [event.fields for event in scene.events(EventKind.TASK_FAILED)]
            assert {fields["task"] for fields in told} == {"the look for stopped VMs"}
            assert [fields["failures"] for fields in told] == list(range(1, len(told) + 1))
            assert len(told) > 2
            for vm in scene.world.alive:
                vm.pid = 0
            await anyio.sleep(40)
            assert len(scene.events(EventKind.TASK_FAILED)) <= len(told) + 1
            assert not lease.has_ended

    play(story())
    caplog.clear()


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_a_start_that_fails_is_a_failed_start(error: Exception, play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """A source's own defect is told to the callers that wait, held back like others, and ends no lease."""
    world, told = FakeWorld(), list[LifeEvent]()
    is_broken = False

    class Source:
        @asynccontextmanager
        async def lease(self) -> Any:
            if is_broken:
                raise error
            async with world.lease() as vm:
                yield vm

    async def story() -> None:
        nonlocal is_broken
        pool = VMPool(PoolConfig(min_size=1, max_size=4), source=cast("VMSource", Source()), observers=[told.append])
        async with pool:
            await pool.wait_ready()
            is_broken = True
            lease = await pool.claim()
            await anyio.sleep(60)
            failed = [event for event in told if event.kind is EventKind.VM_START_FAILED]
            assert 3 <= len(failed) < 12
            with pytest.raises(StartError, match="the start of a VM failed"):
                await pool.claim(600)
            is_broken = False
            await anyio.sleep(60)
            async with await pool.claim(60):
                assert not lease.has_ended

    play(story())
    caplog.clear()


@pytest.mark.parametrize("interval", [None, INTERVAL])
@pytest.mark.parametrize("fault", ["none", "bake", "next is broken, too"])
def test_a_template_that_cannot_be_loaded_any_more_is_replaced(play: Play, fault: str, interval: float | None) -> None:
    """At once, and again after longer and longer pauses; leases go on, callers are told QEMU's words meanwhile."""
    scene = Scene(template_check_interval=interval, min_size=1)

    async def story() -> None:
        async with scene.pool as pool:
            await pool.wait_ready()
            scene.series.broken = {1, 2} if fault == "next is broken, too" else {1}
            scene.series.bake_fails = fault == "bake"
            lease = await pool.claim()
            await anyio.sleep(8)
            if fault != "none":
                assert not scene.events(EventKind.GENERATION_CHANGED)
                with pytest.raises(StateNotLoaded, match="load of migration failed"):
                    await pool.claim(600)
                scene.series.bake_fails = False
            await anyio.sleep(200)
            (change,) = [event.fields for event in scene.events(EventKind.GENERATION_CHANGED)]
            assert change["why"] == "state"
            assert change["generation"] == {"none": 2, "bake": 3, "next is broken, too": 3}[fault]
            async with await pool.claim(60) as vm:
                assert cast("FakeVM", vm).generation == change["generation"]
            assert not lease.has_ended
            scene.series.broken = set()

    play(story())


async def test_only_ordinary_exceptions_are_contained() -> None:
    """What interrupts passes as it is, and cancellation ends a supervised task."""
    with pytest.raises(KeyboardInterrupt), contained("this"):
        raise KeyboardInterrupt

    steps = 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(supervise, "that", step, cast("Any", None))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert steps == 1
