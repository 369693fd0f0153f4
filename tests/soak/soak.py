"""`scripts/soak [N]`: many cycles of real VMs with faults among them, and the evidence that nothing is left of them."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path

import anyio

from sandbox.bench.environment import environment
from sandbox.config import PoolConfig
from sandbox.pool.pool import VMPool
from sandbox.pool.statistics import PoolStatistics
from sandbox.template.template import Template
from tests.soak.cycle import Cycle
from tests.soak.evidence import Evidence, Process
from tests.soak.faults import Victims
from tests.soak.heap import grow_tables
from tests.soak.lag import Lag
from tests.soak.sample import Sample, take
from tests.soak.stop import Stop

AT_ONCE = (2, 4)
"""So many cycles, in turn from batch to batch: two callers often find a VM ready, four wait for one that starts."""
RESTS, LONGEST_BATCH = 10, 100
"""So often a soak rests for a sample, but at least every hundred cycles: rests leave processors idle."""
REST_SECONDS = 60.0
CONFIG = PoolConfig(min_size=3, max_size=7, running_ready=2, priority_seconds=1.0)


async def soak(evidence: Evidence, path: Path | None, template: Template, stop: Stop | None = None) -> None:
    """Run the cycles that are missing, until told to stop; keep `evidence` up to date, and `path` after every batch."""
    grow_tables()
    described = await asyncio.to_thread(environment, template.host, template.spec)
    process = Process(described)
    evidence.processes.append(process)
    started, lag, victims, stop = time.monotonic(), Lag(), Victims(), stop if stop is not None else Stop()
    before = dict(evidence.pool)
    longest = min(LONGEST_BATCH, max(1, (evidence.wanted - evidence.account.cycles) // RESTS))
    async with VMPool(CONFIG, source=template.warmed()) as pool:
        process.samples.append(await _rest(pool, template, evidence))
        for at_once in itertools.cycle(AT_ONCE):
            if evidence.is_complete or stop.is_set:
                break
            numbers = range(evidence.account.cycles, min(evidence.account.cycles + longest, evidence.wanted))
            async with lag.watch():
                await _batch(evidence, pool, victims, numbers, at_once, stop)
            process.samples.append(await _rest(pool, template, evidence))
            victims.forget_dead(pool)
            process.seconds = time.monotonic() - started
            process.see(lag)
            evidence.pool = _added(before, pool.statistics())
            if path is not None:
                await asyncio.to_thread(evidence.save, path)
            _say(f"{evidence.account.cycles}/{evidence.wanted} cycles, {process.seconds:.0f} s, {process.samples[-1]}")
    _settle(evidence, pool.statistics(), before)
    if left := await _left(template):
        evidence.problems.append(f"after the pool was closed: {left}")
    if path is not None:
        await asyncio.to_thread(evidence.save, path)


async def _batch(evidence: Evidence, pool: VMPool, victims: Victims, numbers: range, at_once: int, stop: Stop) -> None:
    """Run these cycles in order until told to stop: those that were begun are over then, and no others were."""
    left = iter(numbers)

    async def one_after_another() -> None:
        while not stop.is_set and (number := next(left, None)) is not None:
            await Cycle(evidence.seed, number, pool, victims, evidence.account).run()

    async with anyio.create_task_group() as group:
        for _ in range(at_once):
            group.start_soon(one_after_another)


async def _rest(pool: VMPool, template: Template, evidence: Evidence) -> Sample:
    """Return a sample of the pool at its target; note it when the pool does not get there."""
    with anyio.move_on_after(REST_SECONDS) as scope:
        while not (_is_at_rest(pool) and await _is_known(pool, template)):  # noqa: ASYNC110 - libvirt has no events for us
            await anyio.sleep(0.02)
    if scope.cancelled_caught:
        evidence.problems.append(f"the pool was not at its target after {REST_SECONDS:g} s: {pool}")
    return await take(evidence.account.cycles, template)


def _is_at_rest(pool: VMPool) -> bool:
    state = pool.statistics()
    slots = [slot for shelf in pool._keeper.shelves.values() for slot in shelf.slots]
    stopped = sum(slot._is_stopped for slot in slots)
    shelved = sum(len(shelf.paused) for shelf in pool._keeper.shelves.values())
    is_full = state.ready == state.target and shelved == stopped == state.ready - CONFIG.running_ready
    return is_full and state.starting == state.leased == state.ending == state.waiting == 0


async def _is_known(pool: VMPool, template: Template) -> bool:
    """Whether libvirt knows exactly the pool's VMs: it drops its record of a dead one some moments later."""
    return len(await template.host.call(template.host.connection.domains)) == pool.statistics().ready


def _added(before: dict[str, int], now: PoolStatistics) -> dict[str, int]:
    names = ("created", "destroyed", "failed_starts", "expired", "claimed", "hits", "released", "lost")
    return {name: before.get(name, 0) + asdict(now)[name] for name in names}


def _settle(evidence: Evidence, now: PoolStatistics, before: dict[str, int]) -> None:
    """Compare the pool's books with what the cycles saw."""
    evidence.pool = total = _added(before, now)
    account = evidence.account
    books = [
        ("created", total["created"], "destroyed", total["destroyed"]),
        ("claimed", total["claimed"], "released + lost", total["released"] + total["lost"]),
        ("lost leases that were met", account.lost, "counted", total["lost"]),
    ]
    evidence.problems += [f"{a} {x} is not {b} {y}" for a, x, b, y in books if x != y]
    if not account.leases <= total["claimed"] <= account.leases + account.cancelled:
        evidence.problems.append(f"{account.leases} leases were held, {total['claimed']} are counted")


async def _left(template: Template) -> list[str]:
    """Return what a closed pool has left: processes, sockets, domains."""
    host = template.host
    with anyio.move_on_after(5):
        while await host.call(host.connection.domains):  # noqa: ASYNC110 - libvirt drops its record in a thread
            await anyio.sleep(0.02)
    sample = await take(0, template)
    sockets = [path.name for path in host.rundir.path.glob("*.sock")]
    names = await host.call(host.connection.domains)
    return [*(f"{sample.processes} processes" for _ in range(sample.processes > 0)), *sockets, *names]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a command


def main() -> int:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("n", nargs="?", type=int, default=200, help="cycles in all (200)")
    parser.add_argument("--seed", type=int, default=None, help="of the faults; drawn, and printed, by default")
    parser.add_argument("--out", type=Path, default=None, help="file for the evidence (soak-SEED.json)")
    parser.add_argument("--resume", type=Path, default=None, metavar="FILE", help="go on with this evidence")
    options = parser.parse_args()
    if options.resume is not None:
        evidence, path = Evidence.load(options.resume), options.out or options.resume
        evidence.wanted = max(evidence.wanted, options.n)
    else:
        evidence = Evidence(
            options.n, random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
        )
        path = options.out or Path(f"soak-{evidence.seed}.json")
    _say(
        f"seed {evidence.seed}, {evidence.wanted} cycles, evidence in {path}; SIGINT or SIGTERM stops, --resume goes on"
    )
    stop = Stop()

    async def run() -> None:
        template = await Template.ensure()
        with stop.on_signals():
            await soak(evidence, path, template, stop)

    asyncio.run(run())
    against = evidence.verdict()
    for line in against:
        _say(f"AGAINST {line}")
    verdict = "FAILED" if against else "holds" if evidence.is_complete else "unfinished"
    _say(f"{verdict}: N = {evidence.account.cycles}, seed {evidence.seed}, evidence in {path}")
    return 1 if against else 128 + stop.by if stop.by is not None and not evidence.is_complete else 0


if __name__ == "__main__":
    sys.exit(main())
