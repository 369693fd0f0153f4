"""A lease that its caller drops, uses after its end, or uses in another event loop: told so, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import anyio
import pytest
from anyio.to_thread import run_sync

from sandbox.certificate import Cause
from sandbox.config import PoolConfig
from sandbox.errors import GuestLost, StateError
from sandbox.event import EventKind, LifeEvent
from sandbox.guest.context import Context
from sandbox.guest.execution import Execution
from sandbox.guest.sandbox import Sandbox
from sandbox.pool.lease import Lease
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template
from sandbox.vm import VM, VMSource
from tests.fakes.world import FakeWorld
from tests.fuzz.channel import Channel

T = TypeVar("T")


def _fake() -> VMSource:
    return cast("VMSource", FakeWorld(start_seconds=0.01))


@pytest.mark.parametrize("by", ["the last reference", "a cycle in another thread"])
async def test_a_dropped_lease_warns_and_ends_its_vm(by: str) -> None:
    """It says so as an open file does, the log and the observers hear why, and the pool goes on with another VM."""
    told = list[LifeEvent]()
    async with VMPool(PoolConfig(min_size=1, max_size=1), source=_fake(), observers=[told.append]) as pool:
        lease = await pool.claim(5)
        name = lease.vm.name
        holders: list[object] = [lease]
        if by != "the last reference":
            holders.append(holders)
        collect: Callable[[], object] = holders.clear if by == "the last reference" else gc.collect
        del lease, holders
        with pytest.warns(ResourceWarning, match="without `release`"):
            await run_sync(collect)
        with anyio.fail_after(5):
            async with pool.acquire() as vm:
                assert vm.name != name
    assert [event.fields["why"] for event in told if event.kind is EventKind.LEASE_ENDED] == ["dropped", "released"]


async def test_a_lease_that_was_released_is_dropped_in_silence() -> None:
    """So is one whose pool has closed: warnings are errors here."""
    async with VMPool(PoolConfig(min_size=1, max_size=2), source=_fake()) as pool:
        lease, other = await pool.claim(5), await pool.claim(5)
        await lease.release()
        del lease
        assert not other.has_ended
    del other
    gc.collect()


ASKED: dict[str, Callable[[VM, Context, Lease], Coroutine[Any, Any, object]]] = {
    "run": lambda vm, _context, _lease: vm.run("print(1)"),
    "exec": lambda vm, _context, _lease: vm.exec("true"),
    "spawn": lambda vm, _context, _lease: vm.spawn("true"),
    "files": lambda vm, _context, _lease: vm.files.read("/etc/hostname"),
    "watch": lambda vm, _context, _lease: vm.files.watch(".").__aenter__(),
    "cell": lambda _vm, context, _lease: context.run("1"),
}


async def test_calls_after_the_release_say_that_the_lease_has_ended(template: Template) -> None:
    """From the very moment of the release on; what ran at that moment is lost, with that as its cause."""
    async with VMPool(PoolConfig(min_size=1, max_size=1), source=template) as pool:
        lease = await pool.claim(60)
        vm, context = lease.vm, lease.vm.open_context()
        await context.run("1")
        await vm.files.exists("x")
        running = await vm.spawn("sleep 1000")
        for end in (lease.release_nowait, lambda: None):
            end()
            for ask in ASKED.values():
                with pytest.raises(StateError, match="has ended"):
                    await ask(vm, context, lease)
            with pytest.raises(StateError, match="has ended"):
                vm.open_context()
            await lease.release()
        with pytest.raises(GuestLost) as lost:
            await running.wait()
        assert lost.value.certificate is not None
        assert lost.value.certificate.cause is Cause.RELEASED
        assert pool.statistics().lost == 0
        assert pool.statistics().released == 1


async def test_a_vm_of_a_source_refuses_calls_after_its_context(template: Template) -> None:
    """Without a pool it is the same."""
    async with template.lease() as vm:
        pass
    with pytest.raises(StateError, match="has ended"):
        await vm.exec("true")


def _elsewhere(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop of its own, which would wait for ever for what another one has to do."""
    return asyncio.run(asyncio.wait_for(coroutine, 10))


async def test_a_pool_and_its_leases_refuse_another_event_loop() -> None:
    """They name both loops instead of waiting for ever."""
    async with VMPool(PoolConfig(min_size=1, max_size=2), source=_fake()) as pool:
        lease = await pool.claim(5)
        asked: list[Callable[[], Coroutine[Any, Any, object]]] = [
            pool.claim,
            pool.wait_ready,
            pool.aclose,
            pool.roll_over,
            lease.release,
            lease.wait_ended,
        ]
        for ask in asked:
            with pytest.raises(StateError, match=r"event loop 0x.*MainThread.*event loop 0x.*thread"):
                await run_sync(_elsewhere, ask())
        for call in (lease.release_nowait, lambda: lease.renew(5)):
            with pytest.raises(StateError, match="no event loop"):
                await run_sync(call)
        assert not lease.has_ended
        await lease.release()


def _of_execution(execution: Execution) -> list[Callable[[], Coroutine[Any, Any, object]]]:
    return [
        execution.wait,
        execution.wait_over,
        execution.close_stdin,
        lambda: execution.write(b"x"),
        lambda: execution.read("stdout"),
    ]


async def test_what_is_inside_a_vm_refuses_another_event_loop() -> None:
    """Nothing is sent from a thread that the channel does not belong to."""
    channel = Channel()
    vm = Sandbox(channel.client)
    execution, context = await vm.spawn("x", stdin=None), vm.open_context()
    sent = channel.queued_bytes
    asked = [
        *_of_execution(execution),
        lambda: vm.run("1"),
        lambda: vm.spawn("1"),
        lambda: vm.files.read("x"),
        lambda: context.run("1"),
        context.aclose,
    ]
    for ask in asked:
        with pytest.raises(StateError, match="event loop"):
            await run_sync(_elsewhere, ask())
    for call in (execution.kill, execution.events, context.interrupt, vm.open_context, lambda: execution.resize(1, 1)):
        with pytest.raises(StateError, match="no event loop"):
            await run_sync(call)
    with pytest.raises(StateError, match="no event loop"):
        await run_sync(execution.send_signal, 2)
    assert channel.queued_bytes == sent
    assert threading.current_thread() is threading.main_thread()
    channel.release()
