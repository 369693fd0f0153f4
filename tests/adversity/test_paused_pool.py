"""Warm VMs beyond a few are paused: they cost no processor time, and are as fresh as others when they are claimed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio

from sandbox.config import PoolConfig
from sandbox.pool.pool import VMPool
from sandbox.pool.slot import SlotState
from sandbox.template.template import Template


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def _settle(pool: VMPool, paused: int) -> list[int]:
    """Return the processes of the paused VMs once there are so many."""
    shelf = pool._keeper.shelves["default"]
    with anyio.fail_after(20):
        while sum(slot._is_stopped for slot in shelf.paused) < paused:  # noqa: ASYNC110 - libvirt pauses in a thread
            await anyio.sleep(0.01)
    return [slot.vm.pid for slot in shelf.paused if slot.vm is not None]


async def test_idle_vms_cost_no_processor_time(template: Template) -> None:
    """Three paused VMs use next to nothing in a second, and a claim is served by one that runs."""
    config = PoolConfig(min_size=4, max_size=5, running_ready=1)
    async with VMPool(config, source=template) as pool:
        await pool.wait_ready()
        pids = await _settle(pool, 3)
        before = sum(_cpu_ticks(pid) for pid in pids)
        await anyio.sleep(1)
        spent = sum(_cpu_ticks(pid) for pid in pids) - before
        assert spent <= os.sysconf("SC_CLK_TCK") // 50
        async with pool.acquire(timeout=5) as vm:
            assert vm.pid not in pids
            assert pool.statistics().hits == 1


async def test_woken_vm_has_the_right_time_and_fresh_randomness(template: Template) -> None:
    """Every claim is served though only one VM runs at a time; the guest's clock is right after its pause."""
    config = PoolConfig(min_size=3, max_size=3, running_ready=0)
    async with VMPool(config, source=template) as pool:
        await pool.wait_ready()
        await _settle(pool, 3)
        await anyio.sleep(3)
        leases = [await pool.claim(10) for _ in range(3)]
        draws = set()
        for lease in leases:
            said = (await lease.vm.run("import os, time; print(time.time(), os.urandom(8).hex())")).text.split()
            assert abs(time.time() - float(said[0])) < 2.0
            assert lease.vm.receipt is not None
            assert abs(lease.vm.receipt.clock_offset) < 0.5
            draws.add(said[1])
        assert len(draws) == 3
        assert SlotState.PAUSED not in {slot.state for slot in pool._keeper.shelves["default"].slots}
