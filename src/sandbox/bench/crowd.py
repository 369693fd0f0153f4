"""The figures of many VMs on one host: memory, processor use, and claims among hundreds."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from sandbox.bench.claims import claim_one
from sandbox.bench.figure import Figure
from sandbox.hypervisor.inventory import find_machines

if TYPE_CHECKING:
    from sandbox.bench.suite import Suite

IMPORTS = "import json, re, subprocess"
_WINDOW_SECONDS = 5.0
_CROWD = 100
_MANY = 400


async def idle_memory(suite: Suite) -> Figure:
    """One more VM that has run a command and waits: by how much the sum over all VMs grows."""
    figure = suite.figure("M1", "memory of one more idle VM", "sum of PSS over all QEMUs, after a command", "bytes")
    async with AsyncExitStack() as stack:
        pids: list[int] = []
        before = 0
        for index in range(suite.n(20) + 3):
            vm = await stack.enter_async_context(suite.template.lease())
            (await vm.run(IMPORTS)).check()
            pids.append(vm.pid)
            now = sum(proportional_bytes(pid) for pid in pids)
            if index >= 3:
                figure.samples.append(float(now - before))
            before = now
    return figure


async def idle_processor(suite: Suite) -> Figure:
    """A hundred pooled VMs of which a few run, and the library itself."""
    figure = suite.figure("M3", "processor use of 100 idle pooled VMs", "share of one core, QEMUs and library", "ratio")
    async with suite.pool(_CROWD) as pool:
        await pool.wait_ready()
        machines = machine_pids(suite)
        for _ in range(suite.n(5)):
            began, used = time.monotonic(), _processor_seconds([os.getpid(), *machines])
            await anyio.sleep(_WINDOW_SECONDS)
            spent = _processor_seconds([os.getpid(), *machines]) - used
            figure.samples.append(spent / (time.monotonic() - began))
    return figure


async def many(suite: Suite) -> Figure:
    """Claims while hundreds of VMs live on the host; none of them is released."""
    count = suite.n(_MANY)
    figure = suite.figure("M2", f"claim among up to {count} live VMs", "call (T0) → VM claimed (T1), pool hits only")
    async with suite.pool(8, spare=count) as pool:
        while len(figure.samples) < count:
            await pool.wait_ready(1)
            taken = await claim_one(pool)
            if taken.is_hit:
                figure.samples.append(taken.seconds)
    return figure


def machine_pids(suite: Suite) -> list[int]:
    """Return the process ids of every QEMU of this process."""
    ours = suite.template.host.rundir.path.name
    return [machine.pid for machine in find_machines(suite.runtime_dir) if machine.run_directory == ours]


def proportional_bytes(pid: int) -> int:
    match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def _processor_seconds(pids: Iterable[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
