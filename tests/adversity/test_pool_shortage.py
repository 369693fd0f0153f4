"""Starts that fail, or cannot be: what there is goes to callers all the same. Most of it in virtual time."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import anyio
import pytest

from sandbox.config import PoolConfig, TemplateConfig, TemplateTarget
from sandbox.errors import HostResources, StartError
from sandbox.hypervisor import threads
from sandbox.oneshot import run
from sandbox.pool.lease import Lease
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template
from sandbox.vm import VMSource
from tests.adversity.test_pool_books import START, opened, play
from tests.fakes.world import FakeWorld

FOR_EVER = 10**6
NO_THREAD = "can't start new thread"


@pytest.mark.parametrize("running", [0, 1])
def test_warm_vms_are_lent_while_no_other_can_be_started(running: int) -> None:
    """Paused ones too, each to one caller; who comes after the last is told the cause at once."""

    async def scene() -> None:
        world = FakeWorld(start_seconds=START)
        async with opened(world, min_size=3, max_size=8, running_ready=running) as pool:
            await pool.wait_ready()
            await anyio.sleep(1)
            world.fail_next = FOR_EVER
            leases = [await pool.claim(timeout=1)]
            await anyio.sleep(10)
            assert pool._keeper.shelves["default"].is_broken
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(pool.claim(timeout=1)) for _ in range(2)]
                await asyncio.sleep(0)
                began = anyio.current_time()
                with pytest.raises(StartError, match="lets this start fail"):
                    await pool.claim(timeout=1)
                assert anyio.current_time() == began
            leases += [task.result() for task in tasks]
            assert len({lease.vm.name for lease in leases}) == 3

    play(scene())


def test_start_that_fails_refuses_nobody_for_whom_another_vm_comes() -> None:
    """A caller's VM is being woken when the host turns out to be full: the caller gets it."""

    async def scene() -> None:
        world = FakeWorld(start_seconds=START)
        async with opened(world, min_size=2, max_size=4, running_ready=0) as pool:
            await pool.wait_ready()
            await anyio.sleep(1)
            world.room = 2
            async with asyncio.timeout(1):
                first, second = await asyncio.gather(pool.claim(), pool.claim())
            assert first.vm.name != second.vm.name
            assert pool.statistics().failed_starts > 0
            with pytest.raises(HostResources, match="full"):
                await pool.claim()

    play(scene())


@asynccontextmanager
async def held_back(world: FakeWorld) -> AsyncIterator[tuple[VMPool, Lease]]:
    """A pool whose starts are held back after failures: one VM of it is lent, and one that is paused is the last."""
    async with opened(world, min_size=2, max_size=4, running_ready=0) as pool:
        await pool.wait_ready()
        await anyio.sleep(1)
        world.fail_next = FOR_EVER
        lease = await pool.claim()
        await anyio.sleep(10)
        yield pool, lease


def test_caller_whose_vm_dies_while_starts_are_held_back_is_told_the_cause() -> None:
    """It was the last there was: nothing else will come for a while."""

    async def scene() -> None:
        world = FakeWorld(start_seconds=START)
        async with held_back(world) as (pool, lease):
            (last,) = [vm for vm in world.alive if vm.name != lease.vm.name]
            other = asyncio.create_task(pool.claim())
            await anyio.sleep(0.001)
            began = anyio.current_time()
            last.die()
            with pytest.raises(StartError, match="lets this start fail"):
                await other
            assert anyio.current_time() == began

    play(scene())


def test_last_warm_vm_goes_to_the_most_senior() -> None:
    """While starts are held back, an urgent caller who comes later gets it, and the other is told the cause."""

    async def scene() -> None:
        async with held_back(FakeWorld(start_seconds=START)) as (pool, _):
            patient = asyncio.create_task(pool.claim())
            await anyio.sleep(0.001)
            urgent = await pool.claim(priority=5)
            assert not urgent.has_ended
            with pytest.raises(StartError, match="lets this start fail"):
                await patient

    play(scene())


def test_end_of_our_own_vms_ends_the_back_off_of_a_full_host() -> None:
    """Two fill the host for minutes; when they are gone, the next caller waits for a start and for nothing else."""

    async def scene() -> None:
        world = FakeWorld(start_seconds=START)
        world.room = 2
        async with opened(world, min_size=1, max_size=4) as pool:
            leases = [await pool.claim(), await pool.claim()]
            await anyio.sleep(125)
            shelf = pool._keeper.shelves["default"]
            assert shelf.resume_at - anyio.current_time() > 5
            for lease in leases:
                await lease.release()
            lease = await pool.claim(timeout=2 * START)
            assert lease.vm.timings["queue"] <= START + 0.001

    play(scene())


def test_starts_that_fail_together_count_once() -> None:
    """Eight at once by one fault: the pool is full as soon as one more round of starts has come up."""

    async def scene() -> None:
        world = FakeWorld(start_seconds=START)
        world.fail_next = 8
        async with opened(world, min_size=8, max_size=8, concurrent_starts=8) as pool:
            async with asyncio.timeout(2.1 * START):
                await pool.wait_ready()
            assert pool.statistics().failed_starts == 8

    play(scene())


def test_after_a_back_off_one_start_is_tried() -> None:
    """A host that has failed three rounds of eight starts is asked for one; when it has come up, for all."""

    async def scene() -> None:
        world = FakeWorld(start_seconds=START)
        world.fail_next = 3 * 8
        async with opened(world, min_size=8, max_size=8, concurrent_starts=8) as pool:
            with pytest.raises(StartError):
                await pool.wait_ready()
            while world.started == 3 * 8:  # noqa: ASYNC110 - the clock jumps
                await anyio.sleep(0.01)
            await anyio.sleep(0.9 * START)
            assert world.started == 3 * 8 + 1
            async with asyncio.timeout(1.2 * START):
                await pool.wait_ready()

    play(scene())


def test_callers_of_one_template_do_not_starve_those_of_another() -> None:
    """With room for one VM, and somebody always waiting for the first template, the second's caller has its turn."""

    async def scene() -> None:
        world = FakeWorld(start_seconds=START)
        config = PoolConfig(min_size=0, max_size=1, more={"b": TemplateTarget(template=TemplateConfig(), min_size=0)})
        served: list[str] = []
        async with VMPool(config, sources=dict.fromkeys(("default", "b"), cast("VMSource", world))) as pool:

            async def use(template: str) -> None:
                async with pool.acquire(template=template):
                    served.append(template)
                    await anyio.sleep(1)

            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(use, "default")
                await anyio.sleep(0.1)
                group.start_soon(use, "b")
                for _ in range(5):
                    await anyio.sleep(0.5)
                    group.start_soon(use, "default")
        assert served == ["default", "default", "b"] + 5 * ["default"]

    play(scene())


async def test_host_without_another_thread_costs_no_lease(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers hear of it as of other shortages; who has a VM keeps it, and the pool goes on when there are threads."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("midwife"):
            raise RuntimeError(NO_THREAD)
        start(thread)

    async with VMPool(PoolConfig(min_size=0, max_size=2), source=template) as pool:
        lease = await pool.claim()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(HostResources, match="ulimit -u"):
                await pool.claim()
        assert (await lease.vm.run("print(6 * 7)")).text == "42\n"
        _other = await pool.claim(timeout=60)
        assert len(await template.host.call(template.host.connection.domains)) == 2


async def test_call_that_fails_by_itself_is_no_shortage() -> None:
    """A defect stays one."""

    def fail() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        await threads.call(fail)


async def test_end_without_a_thread_loses_no_result(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program did is returned, and what the host keeps for its VM is given back later."""
    call = template.host.call

    async def refuse_to_forget(function: Callable[..., object], *arguments: object) -> object:
        if function.__name__ == "_forget":
            raise HostResources("no room for another thread")
        return await call(function, *arguments)

    monkeypatch.setattr(template.host, "call", refuse_to_forget)
    assert (await run("print(6 * 7)", source=template)).text == "42\n"
    async with asyncio.timeout(10):
        while template.host.admission.ledger.own_mib:  # noqa: ASYNC110 - a thread tells nobody
            await anyio.sleep(0.01)


async def test_what_nobody_waits_for_is_done_when_there_is_a_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it, in order, by one thread, told once; the first four attempts find none."""
    refusals, done, threads_before = [RuntimeError(NO_THREAD)] * 4, asyncio.Event(), set(threading.enumerate())
    loop, start = asyncio.get_running_loop(), threading.Thread.start
    order: list[int] = []
    failed: list[object] = []

    def see(failure: object) -> None:
        failed.append(failure)
        loop.call_soon_threadsafe(done.set)

    def maybe(thread: threading.Thread) -> None:
        if refusals:
            raise refusals.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", maybe)
    monkeypatch.setattr(threading, "excepthook", see)
    monkeypatch.setattr(threads, "_AGAIN_SECONDS", 0.001)
    with caplog.at_level(logging.WARNING, "sandbox"):
        threads.soon(order.append, 1)
        threads.soon(order.index, 2)  # which fails, to the harm of nobody else
        threads.soon(lambda: order.append(len(set(threading.enumerate()) - threads_before)))
    async with asyncio.timeout(10):
        await done.wait()
    assert (order, len(failed), refusals) == ([1, 1], 1, [])
    assert len([record for record in caplog.records if "no_thread" in record.getMessage()]) == 1


def test_what_nobody_waits_for_raises_nothing_without_an_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called from clean-up: an error would hide the one that is on its way."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError(NO_THREAD)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    threads.soon(print)
