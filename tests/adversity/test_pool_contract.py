"""The pool's contract, kept in two worlds: the fake one that the model test explores, and real libvirt and QEMU.

Each scene is played in both and must have the same, stated outcome. A fake that behaves unlike a VM fails here.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import anyio
import pytest

from sandbox.config import PoolConfig
from sandbox.errors import SandboxError, StartError
from sandbox.pool.lease import Lease
from sandbox.pool.pool import VMPool
from sandbox.vm import VM, VMSource
from tests.fakes.world import FakeVM, FakeWorld

LONG = 60.0


@dataclass(frozen=True)
class World:
    """A source of VMs, and the way in which one of them dies there."""

    source: VMSource
    kill: Callable[[VM], None]


@pytest.fixture(params=["fake", "real"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "real":
        return World(request.getfixturevalue("template"), lambda vm: os.kill(vm.pid, signal.SIGKILL))
    return World(cast("VMSource", FakeWorld(start_seconds=0.05)), lambda vm: cast("FakeVM", vm).die())


@asynccontextmanager
async def opened(world: World, **config: Any) -> AsyncIterator[VMPool]:
    async with VMPool(PoolConfig(**{"min_size": 0, "max_size": 2, **config}), source=world.source) as pool:
        yield pool


async def code_of(claim: Awaitable[Lease]) -> str:
    """Return the code of the error that a claim ends with, or what it gave."""
    try:
        await (await claim).release()
    except SandboxError as error:
        return error.code
    return "lease"


async def a_turn() -> None:
    """Let a task that was just made run until it waits: so a caller is in the queue, and before the next one."""
    await asyncio.sleep(0)


async def at_rest(pool: VMPool) -> dict[str, int]:
    """Return the books when nothing starts or ends any more and every VM that is to be ready is."""
    with anyio.fail_after(LONG):
        while True:
            now = pool.statistics()
            if now.starting == now.ending == 0 and now.ready == now.target:
                return {name: getattr(now, name) for name in ("created", "destroyed", "claimed", "released", "lost")}
            await pool._keeper.changed.wait()


async def a_lease_is_used_and_given_back(world: World) -> object:
    async with opened(world, min_size=1) as pool:
        await pool.wait_ready()
        async with pool.acquire() as vm:
            said = (await vm.run("print(6 * 7)", timeout=LONG)).text
        return said, vm.is_alive, pool.statistics().hits, await at_rest(pool)


async def releasing_again_changes_nothing(world: World) -> object:
    async with opened(world) as pool:
        first = await pool.claim(LONG)
        await first.release()
        async with await pool.claim(LONG) as second:
            await first.release()
            first.release_nowait()
            return first.has_ended, second.is_alive, second.name != first.vm.name, pool.statistics().leased


async def callers_are_served_in_order_and_by_priority(world: World) -> object:
    served: list[str] = []
    async with opened(world, max_size=1) as pool:

        async def caller(name: str, priority: int) -> None:
            async with pool.acquire(LONG, priority=priority):
                served.append(name)

        async with asyncio.TaskGroup() as group, pool.acquire(LONG):
            for name, priority in (("first", 0), ("second", 0), ("urgent", 1), ("third", 0)):
                group.create_task(caller(name, priority))
                await a_turn()
    return served


async def waiting_ends_with_what_it_waited_for(world: World) -> object:
    async with opened(world, max_size=1, max_waiting=1) as pool, pool.acquire(LONG):
        waiting = asyncio.create_task(code_of(pool.claim(0.3)))
        await a_turn()
        return await code_of(pool.claim()), await waiting, pool.statistics().waiting


async def a_cancelled_caller_leaves_nothing(world: World) -> object:
    async with opened(world, max_size=1) as pool:
        async with pool.acquire(LONG):
            waiting = asyncio.create_task(pool.claim())
            await a_turn()
            waiting.cancel()
            (ended,) = await asyncio.gather(waiting, return_exceptions=True)
        async with pool.acquire(LONG):
            return type(ended).__name__, pool.statistics().waiting, pool.statistics().claimed


async def a_ready_vm_that_dies_is_replaced(world: World) -> object:
    async with opened(world, min_size=1) as pool:
        await pool.wait_ready()
        (slot,) = pool._keeper.shelves["default"].slots
        victim = slot.vm
        assert victim is not None
        world.kill(victim)
        with anyio.fail_after(LONG):
            while pool.statistics().expired == 0:
                await pool._keeper.changed.wait()
        async with pool.acquire(LONG) as vm:
            is_another = vm.name != victim.name
        return is_another, pool.statistics().expired, (await at_rest(pool))["lost"]


async def a_lease_that_loses_its_vm_says_so(world: World) -> object:
    async with opened(world) as pool:
        lease = await pool.claim(LONG)
        world.kill(lease.vm)
        with anyio.fail_after(LONG):
            await lease.wait_ended()
        await lease.release()
        return lease.has_ended, lease.vm.is_alive, await at_rest(pool)


async def a_lease_expires_unless_it_is_renewed(world: World) -> object:
    async with opened(world) as pool:
        lease, renewed = await pool.claim(LONG, lease_ttl=0.2), await pool.claim(LONG, lease_ttl=LONG)
        renewed.renew(None)
        with anyio.fail_after(LONG):
            await lease.wait_ended()
        kept = renewed.has_ended, renewed.left
        await renewed.release()
        return kept, await at_rest(pool)


async def one_that_is_too_old_is_never_given(world: World) -> object:
    async with opened(world, min_size=1, ttl=0.3) as pool:
        await pool.wait_ready()
        (slot,) = pool._keeper.shelves["default"].slots
        old = slot.vm
        with anyio.fail_after(LONG):
            while pool.statistics().expired == 0:
                await pool._keeper.changed.wait()
        async with pool.acquire(LONG) as vm:
            return old is not None, vm is not old


async def starts_that_fail_are_told_and_counted(world: World) -> object:
    class Failing:
        left = 1

        @asynccontextmanager
        async def lease(self) -> AsyncIterator[VM]:
            if self.left:
                self.left -= 1
                raise StartError("this one fails")
            async with world.source.lease() as vm:
                yield vm

    source = Failing()
    async with VMPool(PoolConfig(min_size=2, max_size=2), source=source) as pool:
        await pool.wait_ready()
        recovered = pool.statistics().failed_starts
        source.left = 1000
        async with pool.acquire(LONG), pool.acquire(LONG):
            pass
        with anyio.fail_after(LONG):
            return recovered, await code_of(pool.claim(LONG))


async def closing_ends_leases_and_refuses_callers(world: World) -> object:
    pool = VMPool(PoolConfig(min_size=1, max_size=1), source=world.source)
    await pool.open()
    lease = await pool.claim(LONG)
    waiting = asyncio.create_task(code_of(pool.claim()))
    await a_turn()
    await pool.aclose()
    books = pool.statistics()
    return (
        lease.has_ended,
        lease.vm.is_alive,
        await waiting,
        await code_of(pool.claim()),
        books.created,
        books.destroyed,
    )


_ONE_LEASE = {"created": 2, "destroyed": 1, "claimed": 1, "released": 1, "lost": 0}
SCENES: list[tuple[Callable[[World], Awaitable[object]], object]] = [
    (a_lease_is_used_and_given_back, ("42\n", False, 1, _ONE_LEASE)),
    (releasing_again_changes_nothing, (True, True, True, 1)),
    (callers_are_served_in_order_and_by_priority, ["urgent", "first", "second", "third"]),
    (waiting_ends_with_what_it_waited_for, ("POOL_BUSY", "POOL_TIMEOUT", 0)),
    (a_cancelled_caller_leaves_nothing, ("CancelledError", 0, 2)),
    (a_ready_vm_that_dies_is_replaced, (True, 1, 0)),
    (
        a_lease_that_loses_its_vm_says_so,
        (True, False, {"created": 1, "destroyed": 1, "claimed": 1, "released": 0, "lost": 1}),
    ),
    (
        a_lease_expires_unless_it_is_renewed,
        ((False, None), {"created": 2, "destroyed": 2, "claimed": 2, "released": 2, "lost": 0}),
    ),
    (one_that_is_too_old_is_never_given, (True, True)),
    (starts_that_fail_are_told_and_counted, (1, "START")),
    (closing_ends_leases_and_refuses_callers, (True, False, "POOL_CLOSED", "POOL_CLOSED", 1, 1)),
]


@pytest.mark.parametrize(("scene", "outcome"), SCENES, ids=[scene.__name__ for scene, _ in SCENES])
async def test_scene_ends_alike_in_both_worlds(
    world: World, scene: Callable[[World], Awaitable[object]], outcome: object
) -> None:
    """What happens is the stated outcome, with counted VMs as with real ones."""
    assert await scene(world) == outcome
