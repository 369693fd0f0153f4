"""The figures of a warm pool: claims, refills, and many callers at once."""

from __future__ import annotations

import asyncio
import os
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import anyio

from sandbox.bench.figure import Figure

if TYPE_CHECKING:
    from sandbox.bench.suite import Suite

MIB = 1024 * 1024
_BATCH = 20


async def claim(suite: Suite) -> Figure:
    """A VM that stands ready changes hands."""
    figure = suite.figure("A1", "claim from the warm pool", "call (T0) → VM claimed (T1), pool hits only")
    async with suite.pool(4) as pool:
        while len(figure.samples) < suite.n(100):
            await pool.wait_ready()
            hits = pool.statistics().hits
            started = time.monotonic()
            lease = await pool.claim()
            seconds = time.monotonic() - started
            if pool.statistics().hits == hits + 1:
                figure.samples.append(seconds)
            await lease.release()
    return figure


async def five_claims(suite: Suite) -> Figure:
    """Five callers in the same instant, five VMs that run; each one's wait is a sample."""
    figure = suite.figure("A2", "five claims at once", "first call (T0) → each VM claimed (T1), pool hits only")
    async with suite.pool(5, running=5) as pool:
        while len(figure.samples) < suite.n(50):
            await pool.wait_ready()
            hits = pool.statistics().hits
            started = time.monotonic()

            async def one(started: float = started) -> tuple[float, object]:
                lease = await pool.claim()
                return time.monotonic() - started, lease

            pairs = await asyncio.gather(*(one() for _ in range(5)))
            if pool.statistics().hits == hits + 5:
                figure.samples += [seconds for seconds, _ in pairs]
            for _, lease in pairs:
                await lease.release()  # type: ignore[attr-defined]
    return figure


async def claim_and_run(suite: Suite) -> Figure:
    """What a caller of the pool waits for a line of Python."""
    figure = suite.figure("A3", "claim → first command's result", "call (T0) → result (T6), pool hits only")
    async with suite.pool(4) as pool:
        while len(figure.samples) < suite.n(40):
            await pool.wait_ready()
            hits = pool.statistics().hits
            started = time.monotonic()
            async with pool.acquire() as vm:
                (await vm.run("print(6 * 7)")).check()
                seconds = time.monotonic() - started
            if pool.statistics().hits == hits + 1:
                figure.samples.append(seconds)
    return figure


async def refill(suite: Suite) -> Figure:
    """The pool makes good what was taken."""
    figure = suite.figure("A4", "refill of one VM after a release", "release → pool full again, warm-up included")
    async with suite.pool(2, spare=0) as pool:
        for _ in range(suite.n(30)):
            await pool.wait_ready()
            lease = await pool.claim()
            started = time.monotonic()
            await lease.release()
            await pool.wait_ready()
            figure.samples.append(time.monotonic() - started)
    return figure


async def ten_agents(suite: Suite) -> Figure:
    """Ten callers, each with a VM of its own."""
    figure = suite.figure("E2", "ten agents at once, a VM each", "first call (T0) → last result (T6), pool of ten")
    async with suite.pool(10) as pool:
        for _ in range(suite.n(5)):
            await pool.wait_ready()
            started = time.monotonic()
            results = await asyncio.gather(*(pool.run(f"print({index})") for index in range(10)))
            figure.samples.append(time.monotonic() - started)
            for result in results:
                result.check()
    return figure


async def sustained(suite: Suite) -> Figure:
    """No pool: as many fresh VMs, one after another on each of a few lines, as the host can make."""
    cores = os.cpu_count() or 1
    figure = suite.figure(
        "E3", "fresh VM + run + destroy, sustained", "VMs per second and core, in batches", "per second"
    )
    async with anyio.create_task_group() as group:
        done: list[float] = []
        is_enough = anyio.Event()

        async def line() -> None:
            while True:
                async with suite.template.lease() as vm:
                    (await vm.run("print(6 * 7)")).check()
                done.append(time.monotonic())
                if len(done) > _BATCH * (suite.n(5) + 1):
                    is_enough.set()

        for _ in range(2 * cores):
            group.start_soon(line)
        await is_enough.wait()
        group.cancel_scope.cancel()
    ends = done[_BATCH::_BATCH]  # the first batch warms the host up
    figure.samples += [_BATCH / (end - begin) / cores for begin, end in pairwise(ends)]
    return figure


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


async def workflow(suite: Suite) -> Figure:
    """Everything that a coding agent does, once."""
    figure = suite.figure("E5", "code + 1 MiB in, run, 1 MiB out, release", "call (T0) → VM destroyed")
    data = os.urandom(MIB)
    code = "data = open('in', 'rb').read(); open('out', 'wb').write(data[::-1])"
    async with suite.pool(2) as pool:
        for _ in range(suite.n(15)):
            await pool.wait_ready()
            started = time.monotonic()
            async with pool.acquire() as vm:
                await vm.write_file("in", data)
                (await vm.run(code)).check()
                assert await vm.read_file("out") == data[::-1]
            figure.samples.append(time.monotonic() - started)
    return figure
