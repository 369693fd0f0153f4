"""Every place at which the library waits is cancelled once, and its clean-up again: nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import product
from typing import Any, cast

import anyio
import pytest

from sandbox.config import PoolConfig
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template
from sandbox.vm import VMSource
from tests.fakes.cancelling import Points
from tests.fakes.virtual_time import VirtualTimeLoop
from tests.fakes.world import FakeWorld

Work = Callable[[], Coroutine[Any, Any, object]]
AGAIN = (None, 1, 2)


async def _sweep(work: Work, check: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Cancel `work` at every suspension, once and then again in its clean-up; return how many suspensions there are."""
    points = Points()
    await asyncio.create_task(points.drive(work()))
    await check()
    for at, again in product(range(points.count), AGAIN):
        task = asyncio.create_task(Points(at, again).drive(work()))
        with suppress(asyncio.CancelledError):
            await task
        await check()
    return points.count


def _told(name: str, count: int) -> None:
    print(f"{name}: {count} suspension points cancelled")  # noqa: T201 - a figure


async def test_lease_run_and_files(template: Template, capsys: pytest.CaptureFixture[str]) -> None:
    """Claim, run, put, get, context and release of a pooled VM."""
    async with VMPool(PoolConfig(min_size=1, max_size=2), source=template) as pool:

        async def use() -> None:
            async with pool.acquire(timeout=30) as vm:
                await vm.run("print(1)", stdin=b"x")
                await vm.files.write("a", b"1")
                await vm.files.read("a")
                async with vm.context() as context:
                    await context.run("1")

        async def check() -> None:
            with anyio.fail_after(10):
                while pool.statistics().leased or pool.statistics().waiting:
                    await pool._keeper.changed.wait()
            record = pool.statistics()
            assert record.claimed == record.released + record.lost

        count = await _sweep(use, check)
    assert count >= 8
    with capsys.disabled():
        _told("acquire, run, put, get, context, release", count)


async def test_clone_of_a_template(template: Template, capsys: pytest.CaptureFixture[str]) -> None:
    """Start and destruction of a VM without a pool, in the caller's own task."""

    async def use() -> None:
        async with template.lease() as vm:
            await vm.exec(["true"])

    async def check() -> None:
        with anyio.fail_after(10):
            while await template.host.call(template.host.connection.domains):  # noqa: ASYNC110 - libvirt tells nobody
                await anyio.sleep(0.01)
            while template.host.admission.ledger.own_mib or template.host.groups._groups:  # noqa: ASYNC110 - nor a thread
                await anyio.sleep(0.01)

    count = await _sweep(use, check)
    assert count > 3
    with capsys.disabled():
        _told("restore, run, destroy", count)


@pytest.mark.parametrize("low", [0, 2])
def test_open_claim_and_close_of_a_pool(low: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The pool's own life, in two states of fullness, over a world that is only counted."""
    loop = VirtualTimeLoop()
    world = FakeWorld()

    async def use() -> None:
        pool = VMPool(PoolConfig(min_size=low, max_size=3), source=cast("VMSource", world))
        try:
            await pool.open()
            if low:
                await pool.wait_ready()
            lease = await pool.claim(10)
            second = asyncio.create_task(pool.claim(10))
            await lease.release()
            await (await second).release()
        finally:
            while not pool.is_closed:
                with suppress(asyncio.CancelledError):
                    await pool.aclose()

    async def check() -> None:
        assert not world.alive
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if task.get_name() == "sandbox-pool"]

    count = loop.run_until_complete(_sweep(use, check))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    with capsys.disabled():
        _told(f"open, claim, release, close with {low} ready", count)
