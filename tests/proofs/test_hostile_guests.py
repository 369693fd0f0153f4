"""Guests that do everything at once: honest ones get right answers in time, and the host keeps within its bounds."""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox.bench.environment import environment
from sandbox.guest.answers import CELL
from sandbox.guest.context import Context
from sandbox.hypervisor.facts import LOG_KIB
from sandbox.template.template import Template
from sandbox.vm import VM
from tests.proofs.honest_caller import Calls, call_honestly
from tests.proofs.hostile_lives import CALLS, CAPTURE_BYTES, HostileCaller, Lives
from tests.proofs.hostile_record import ENOUGH, Record, nothing_uncaught
from tests.soak.heap import grow_tables
from tests.soak.lag import Lag
from tests.soak.sample import Sample, take
from tests.waiting import until_written

SECONDS = float(os.environ.get("SANDBOX_HOSTILE_SECONDS", "150"))
SEED = os.environ.get("SANDBOX_HOSTILE_SEED") or str(random.SystemRandom().randrange(10**6))
EVIDENCE = os.environ.get("SANDBOX_HOSTILE_EVIDENCE")
VMS = 4
"""Of each sort."""
PHASE_SECONDS = min(60.0, max(12.0, SECONDS / 8))
MIB = 1024 * 1024
BURN = "print('begun', flush=True)\nwhile True: pass"
DIRECTORY_BYTES = (LOG_KIB + 32) * 1024
"""QEMU's log, and small files of libvirt, of one VM."""
SPILLED_BYTES = 2 * (1 + CALLS) * CAPTURE_BYTES
"""Both streams of the program that took over, and of each call."""
_Other = Callable[[Callable[[], None]], Coroutine[Any, Any, None]]
_PAGE = (Path(__file__).parents[2] / "docs" / "confinement.md").read_text()


def _stated_mib(name: str) -> float:
    match = re.search(rf"^\| {re.escape(name)} \|.*\| ([\d.]+) MiB \|$", _PAGE, re.M)
    assert match, f"the page has no row {name!r}"
    return float(match[1])


def _memory_bytes() -> int:
    """Return what the page allows one VM: a followed program, and of each call a program, a follower, an answer."""
    call = (_stated_mib("record of a program") + _stated_mib("one who follows it")) * MIB + CELL.memory
    return int(_stated_mib("together") * MIB + CALLS * call)


@pytest.mark.timeout(int(SECONDS * 2 + 300))
async def test_guests_that_do_everything_at_once_harm_no_other(
    template: Template, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Honest answers are right and in time, errors are typed, memory and disk stay in bounds, and nothing is left."""
    (tmp_path / "downloads").mkdir()
    (tmp_path / "given" / "d").mkdir(parents=True)
    (tmp_path / "given" / "d" / "file").write_bytes(bytes(100_000))
    await _use_everything_once(template)
    described = await asyncio.to_thread(environment, template.host, template.spec)
    record = Record(SEED, SECONDS, VMS, _memory_bytes(), DIRECTORY_BYTES, SPILLED_BYTES, described)
    started = time.monotonic()
    with nothing_uncaught(record.uncaught):
        record.samples.append(await _at_rest(record, template))
        while record.rounds == 0 or record.seconds * (1 + 1 / record.rounds) <= SECONDS:
            await _round(record, template, tmp_path)
            record.samples.append(await _at_rest(record, template))
            record.seconds = time.monotonic() - started
            if EVIDENCE is not None:
                await asyncio.to_thread(record.save, Path(EVIDENCE))
    with capsys.disabled():
        sys.stdout.write(f"\n{_summary(record)}\n")
    assert record.verdict() == [], f"seed {SEED}"
    assert sum(count for end, count in record.lives.ends.items() if end != "outlived") > 0, "they were hostile"


def test_each_breach_is_told() -> None:
    """The control: whatever a hostile guest would have brought about is in the verdict."""
    record = Record("1", 1.0, 1, 100, 100, 100, {})
    record.samples = [Sample(*([0] * 12))] * 3
    for calls, took in ((record.beside_silent, 0.1), (record.beside_hostile, 0.15)):
        calls.seconds["run"] += [took] * ENOUGH
    assert record.verdict() == []
    record.beside_hostile.seconds["run"] += [0.21] * (ENOUGH // 50)
    record.held.memory = record.held.directory = record.held.spilled = 101
    record.lag_hostile.own.add(20.0)
    record.lives.wrong.append("a type")
    record.uncaught.append("an exception")
    record.samples = [*record.samples, *[replace(record.samples[0], descriptors=1)] * 3]
    told = " / ".join(record.verdict())
    for breach in (
        "memory: 101",
        "directory: 101",
        "spilled output: 101",
        "20.",
        "p99",
        "type",
        "exception",
        "descriptors",
    ):
        assert breach in told


async def _round(record: Record, template: Template, directory: Path) -> None:
    """Measure honest calls beside hostile VMs and beside silent ones; which come first, changes."""
    draw = random.Random(f"{SEED} {record.rounds}")
    async with AsyncExitStack() as stack:
        honest = [await stack.enter_async_context(_honest(template)) for _ in range(VMS)]
        for is_hostile in (False, True) if record.rounds % 2 else (True, False):
            calls, lag = (
                (record.beside_hostile, record.lag_hostile) if is_hostile else (record.beside_silent, record.lag_silent)
            )
            if is_hostile:
                seeds = [f"{SEED}-{record.rounds}-{number}" for number in range(VMS)]
                others = [HostileCaller(template, seed, directory / "downloads", record.lives) for seed in seeds]
                async with record.held.watch(template.host.rundir.path):
                    await _measure(honest, [other.go_on for other in others], calls, lag, draw)
            else:
                await _measure(honest, [partial(_burn, template, record.lives, draw)] * VMS, calls, lag, draw)
    record.rounds += 1


async def _measure(
    honest: list[tuple[VM, Context]], others: list[_Other], calls: Calls, lag: Lag, draw: random.Random
) -> None:
    """Let others go on, and make honest calls for one phase as soon as each of those has begun."""
    async with anyio.create_task_group() as group:
        begun = [anyio.Event() for _ in others]
        for other, event in zip(others, begun, strict=True):
            group.start_soon(other, event.set)
        for event in begun:
            await event.wait()
        until = time.monotonic() + PHASE_SECONDS
        async with lag.watch(), anyio.create_task_group() as measured:
            for vm, context in honest:
                measured.start_soon(call_honestly, vm, context, until, calls, random.Random(draw.random()))
        group.cancel_scope.cancel()


@asynccontextmanager
async def _honest(template: Template) -> AsyncIterator[tuple[VM, Context]]:
    async with template.lease() as vm, vm.context() as context:
        (await context.run("1 + 1")).check()
        (await vm.run("print(1)")).check()
        yield vm, context


async def _burn(template: Template, lives: Lives, draw: random.Random, begun: Callable[[], None]) -> None:
    """Have one VM after another burn its processor silently, each for as long as one of the hostile ones has lived.

    A VM that is lost costs others the start of the next one, whether it was hostile or not.
    """
    while True:
        async with template.lease() as vm:
            execution = await vm.spawn(["python3", "-c", BURN], user="root")
            await until_written(execution, 1)
            begun()
            await anyio.sleep(draw.choice(lives.seconds))


async def _use_everything_once(template: Template) -> None:
    """What a process opens once, it opens now; threads and tables have the size that they will have."""
    grow_tables()
    async with AsyncExitStack() as stack:
        honest = [await stack.enter_async_context(_honest(template)) for _ in range(VMS)]
        await call_honestly(*honest[0], 0.0, Calls(), random.Random(0))


async def _at_rest(record: Record, template: Template) -> Sample:
    with anyio.fail_after(10):  # libvirt drops its record of a dead VM within 0.2 s
        while await template.host.call(template.host.connection.domains):  # noqa: ASYNC110 - and tells nobody
            await anyio.sleep(0.02)
    return await take(record.lives.count, template)


def _summary(record: Record) -> str:
    own, calls = record.lag_hostile.own, record.beside_hostile
    ends = ", ".join(f"{count} {end}" for end, count in record.lives.ends.most_common())
    return (
        f"seed {SEED}: {record.rounds} rounds, {record.seconds:.0f} s; {record.lives.count} hostile lives ({ends}), "
        f"{sum(record.lives.calls.values())} calls to them; honest calls: {calls.count}, "
        f"{record.ratios} times as long as {record.beside_silent.count} beside silent VMs; "
        f"the loop was late by {own.p99_ms:.1f} ms (p99), {own.worst_ms:.1f} ms (worst); "
        f"{record.held.memory / MIB / VMS:.1f} MiB of memory, {record.held.directory / 1024 / VMS:.0f} KiB of run "
        f"directory and {record.held.spilled / MIB / VMS:.1f} MiB of spilled output for each hostile VM at most"
    )
