"""The figures of as much work as the host can do: VMs one after another, and all at once."""

from __future__ import annotations

import asyncio
import os
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import anyio

from sandbox.bench.figure import Figure
from sandbox.bench.raw import raw_drivers, raw_rate

if TYPE_CHECKING:
    from sandbox.bench.suite import Suite

_BATCH = 20


async def sustained(suite: Suite) -> Figure:
    """No pool: as many fresh VMs, one after another on each of a few lines, as the host can make.

    Before and after it as many lines of raw restores, which run nothing: what the host gives at that time.
    """
    batches = suite.n(5)
    figure = suite.figure(
        "E3", "fresh VM + run + destroy, sustained", "VMs per second and core, in batches", "per second"
    )
    figure.reference = "raw restores, as many lines"
    async with raw_drivers(suite.template, _lines()) as drivers:
        await asyncio.to_thread(raw_rate, drivers, _BATCH)  # warms the host up
        before = [await asyncio.to_thread(raw_rate, drivers, _BATCH) for _ in range((batches + 1) // 2)]
        await sustain(suite, figure, batches)
        after = [await asyncio.to_thread(raw_rate, drivers, _BATCH) for _ in range((batches + 1) // 2)]
    figure.reference_samples += [rate / _cores() for rate in before + after]
    return figure


async def sustain(suite: Suite, figure: Figure, batches: int, size: int = _BATCH) -> None:
    """Keep a few lines of fresh VMs busy, for so many batches of VMs and one that does not count."""
    async with anyio.create_task_group() as group:
        done: list[float] = []
        is_enough = anyio.Event()

        async def line() -> None:
            while True:
                async with suite.template.lease() as vm:
                    (await vm.run("print(6 * 7)")).check()
                done.append(time.monotonic())
                if len(done) > size * (batches + 1):
                    is_enough.set()

        for _ in range(_lines()):
            group.start_soon(line)
        await is_enough.wait()
        group.cancel_scope.cancel()
    ends = done[size::size]  # the first batch warms the host up
    figure.samples += [size / (end - begin) / _cores() for begin, end in pairwise(ends)]


def _cores() -> int:
    return os.cpu_count() or 1


def _lines() -> int:
    return 2 * _cores()


async def burst(suite: Suite) -> Figure:
    """A hundred callers in the same instant; each one's wait is a sample, and every one of them succeeds."""
    figure = suite.figure("E4", "100 runs at once, pool of 16", "first call (T0) → each result (T6)")
    async with suite.pool(16, spare=0) as pool:
        await pool.wait_ready()
        started = time.monotonic()

        async def one(index: int) -> float:
            result = (await pool.run(f"print({index})")).check()
            assert result.text == f"{index}\n"
            return time.monotonic() - started

        figure.samples += await asyncio.gather(*(one(index) for index in range(suite.n(100))))
    return figure
