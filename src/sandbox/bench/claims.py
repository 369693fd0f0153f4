"""The figures of a warm pool: claims, refills, and a few callers at once."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.bench.figure import Figure
from sandbox.bench.yardstick import YARDSTICK, yardstick
from sandbox.pool.lease import Lease
from sandbox.pool.pool import VMPool

if TYPE_CHECKING:
    from sandbox.bench.suite import Suite

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim and its clock; times are seconds of the monotonic clock."""

    lease: Lease
    started: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def is_hit(self) -> bool:
        """Whether the VM stood ready; only such a claim may be called warm."""
        return self.lease.vm.origin == "hit"


async def claim_one(pool: VMPool) -> Claim:
    started = time.monotonic()
    lease = await pool.claim()
    return Claim(lease, started, time.monotonic())


async def claim(suite: Suite) -> Figure:
    """A VM that stands ready changes hands."""
    figure = suite.figure("A1", "claim from the warm pool", "call (T0) → VM claimed (T1), pool hits only")
    async with suite.pool(4) as pool:
        await sample_claims(figure, pool, suite.n(100))
    return figure


async def sample_claims(figure: Figure, pool: VMPool, count: int) -> None:
    """Claim and release until so many claims have met a full pool and hit it; a yardstick is taken with each."""
    figure.reference = YARDSTICK
    while len(figure.samples) < count:
        await pool.wait_ready()
        taken = await claim_one(pool)
        if taken.is_hit:
            figure.samples.append(taken.seconds)
            figure.reference_samples.append(yardstick())
        await taken.lease.release()


async def five_claims(suite: Suite) -> Figure:
    """Five callers in the same instant, five VMs that run; each one's wait is a sample."""
    figure = suite.figure("A2", "five claims at once", "first call (T0) → each VM claimed (T1), pool hits only")
    async with suite.pool(5, running=5) as pool:
        while len(figure.samples) < suite.n(50):
            await pool.wait_ready()
            started = time.monotonic()
            claims = await asyncio.gather(*(claim_one(pool) for _ in range(5)))
            if all(taken.is_hit for taken in claims):
                figure.samples += [taken.ended - started for taken in claims]
            for taken in claims:
                await taken.lease.release()
    return figure


async def claim_and_run(suite: Suite) -> Figure:
    """What a caller of the pool waits for a line of Python."""
    figure = suite.figure("A3", "claim → first command's result", "call (T0) → result (T6), pool hits only")
    async with suite.pool(4) as pool:
        while len(figure.samples) < suite.n(40):
            await pool.wait_ready()
            taken = await claim_one(pool)
            async with taken.lease as vm:
                (await vm.run("print(6 * 7)")).check()
                seconds = time.monotonic() - taken.started
            if taken.is_hit:
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
