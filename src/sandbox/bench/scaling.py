"""Curves: the figures that must hold however many VMs live on the host, drawn against that number."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sandbox.bench.claims import sample_claims
from sandbox.bench.crowd import IMPORTS, machine_pids, proportional_bytes
from sandbox.bench.figure import Figure
from sandbox.bench.starts import sample_restores
from sandbox.bench.throughput import sustain
from sandbox.config import PoolConfig
from sandbox.errors import HostResources
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template
from sandbox.vm import VM

if TYPE_CHECKING:
    from sandbox.bench.suite import Suite

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 400)
_SPARE = 2
"""Beyond the idle ones, a pool may have so many: one that is leased, one that ends."""
_BATCH = 10
_TTL = 24 * 3600.0
"""None of them is replaced while a curve is measured."""


class Idle:
    """Clones that have run a command which imports something, as an idle VM that is ready for work has."""

    def __init__(self, template: Template) -> None:
        self._template = template

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[VM]:
        async with self._template.lease() as vm:
            (await vm.run(IMPORTS)).check()
            yield vm


async def measure_curves(suite: Suite, metrics: Sequence[str], up_to: int, tell: Callable[[Figure], None]) -> None:
    """Measure each metric with 1, 2, 5 and more idle VMs, `up_to` at last; `tell` each point when it is there.

    The idle VMs are those of one pool, which pauses them as it does for anybody. Where the host holds no more of them,
    the curves end, and the suite notes where and why.
    """
    points: list[Figure] = []
    for count in sorted({number for number in COUNTS if number < up_to} | {up_to}):
        refusal: HostResources | None = None
        try:
            suite.say(f"starting {count} idle VMs")
            config = PoolConfig(min_size=count, max_size=count + _SPARE, ttl=_TTL)
            async with VMPool(config, source=Idle(suite.template)) as pool:
                for metric in metrics:
                    await pool.wait_ready()
                    suite.say(f"measuring {metric} with {count} idle VMs")
                    points.append(await METRICS[metric](suite, pool, count))
                    tell(points[-1])
        except* HostResources as refusals:
            refusal = _first(refusals)
        if refusal is not None:
            suite.note(f"the curves end before {count} idle VMs: the host holds no more of them ({refusal})")
            break
    if (flatness := _flatness(suite, points)) is not None:
        tell(flatness)


async def _claim(suite: Suite, pool: VMPool, count: int) -> Figure:
    name = f"claim from the warm pool, {count} idle VMs"
    figure = suite.figure(f"A1@{count}", name, "call (T0) → VM claimed (T1), pool hits only")
    await sample_claims(figure, pool, suite.n(30))
    return figure


async def _restore(suite: Suite, _: VMPool, count: int) -> Figure:
    name = f"restore → agent answers, beside {count} idle VMs"
    figure = suite.figure(f"S3@{count}", name, "call (T1) → identity confirmed (T4)")
    await sample_restores(suite, figure, suite.n(10))
    return figure


async def _sustained(suite: Suite, _: VMPool, count: int) -> Figure:
    name = f"fresh VM + run + destroy, beside {count} idle VMs"
    figure = suite.figure(f"E3@{count}", name, "VMs per second and core, in batches", "per second")
    await sustain(suite, figure, suite.n(5), _BATCH)
    return figure


async def _memory(suite: Suite, _: VMPool, count: int) -> Figure:
    """Each VM's share of what it maps; the mean of the samples is the sum over the VMs."""
    name = f"memory of an idle VM among {count}"
    figure = suite.figure(f"M1@{count}", name, "PSS of each QEMU, after a command", "bytes")
    pids = machine_pids(suite)
    if len(pids) != count:
        raise RuntimeError(f"{len(pids)} QEMU processes are there for {count} idle VMs")
    figure.samples += [float(proportional_bytes(pid)) for pid in pids]
    return figure


METRICS: dict[str, Callable[[Suite, VMPool, int], Awaitable[Figure]]] = {
    "A1": _claim,
    "S3": _restore,
    "E3": _sustained,
    "M1": _memory,
}


def _flatness(suite: Suite, points: list[Figure]) -> Figure | None:
    """Return how much longer a claim takes among the most VMs than with the fewest, or None for a single point."""
    claims = [point for point in points if point.metric == "A1"]
    if len(claims) < 2:
        return None
    fewest, most = claims[0], claims[-1]
    figure = suite.figure(
        "A1FLAT", f"claim with {most.live} idle VMs over {fewest.live}", "A1 ÷ the first point's median", "ratio"
    )
    figure.samples += [sample / fewest.p50 for sample in most.samples]
    return figure


def _first(refusals: BaseExceptionGroup[HostResources]) -> HostResources:
    error: BaseException = refusals
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, HostResources)
    return error
