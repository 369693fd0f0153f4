"""When a pool starts the VM that takes a claimed one's place, with real VMs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import anyio
import pytest

from sandbox.config import PoolConfig
from sandbox.pool.policy import YOUNG_LEASE
from sandbox.pool.pool import VMPool
from sandbox.pool.slot import Slot
from sandbox.template.template import Template


async def _turns() -> None:
    """Let the loop turn so often that the pool's owner has seen what there is to see."""
    for _ in range(10):
        await asyncio.sleep(0)


async def _until_one_starts(pool: VMPool) -> None:
    while not pool.statistics().starting:  # noqa: ASYNC110 - to be seen in the very turn of the loop
        await asyncio.sleep(0)


@pytest.fixture
def _youth_of_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.pool.shelf.YOUNG_LEASE", 60.0)


async def test_replacement_waits_while_the_lease_is_young(pool: VMPool) -> None:
    """A VM is replaced when its caller has had moments for himself: by the clock, nothing else happens."""
    await pool.wait_ready()
    began = time.monotonic()
    async with pool.acquire():
        await _until_one_starts(pool)
        assert time.monotonic() - began >= YOUNG_LEASE


async def test_youth_that_ends_while_the_owner_looks_is_seen(pool: VMPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that loses its processor between two looks at the clock does not stay one VM short."""
    await pool.wait_ready()
    look = pool._keeper._due

    def slowly() -> Iterator[Slot]:
        found, until = list(look()), time.monotonic() + 2 * YOUNG_LEASE
        while time.monotonic() < until:
            pass
        return iter(found)

    monkeypatch.setattr(pool._keeper, "_due", slowly)
    async with pool.acquire():
        with anyio.fail_after(10):
            await _until_one_starts(pool)


@pytest.mark.usefixtures("_youth_of_a_minute")
async def test_second_claim_starts_both_replacements(template: Template) -> None:
    """Claims that follow one another do not empty a pool, although each of their leases is young."""
    async with VMPool(PoolConfig(min_size=3, max_size=8), source=template) as pool:
        await pool.wait_ready()
        async with pool.acquire():
            await _turns()
            assert pool.statistics().starting == 0
            async with pool.acquire():
                await _until_one_starts(pool)
                assert pool.statistics().starting == 2
                assert pool.statistics().ready == 1


@pytest.mark.usefixtures("_youth_of_a_minute")
async def test_replacement_starts_when_a_young_lease_ends(pool: VMPool) -> None:
    """Nobody is left to be disturbed."""
    await pool.wait_ready()
    lease = await pool.claim()
    await _turns()
    assert pool.statistics().starting == 0
    lease.release_nowait()
    with anyio.fail_after(10):
        await _until_one_starts(pool)
