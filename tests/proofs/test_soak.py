"""A short soak with every kind of fault in it, and the proof that its verdict would tell."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import anyio
import pytest

from sandbox.hypervisor.inventory import owners
from sandbox.template.template import Template
from tests.soak.evidence import Evidence, Process
from tests.soak.heap import grow_tables, malloc_kib
from tests.soak.lag import Lag
from tests.soak.sample import ALLOWED_MEMORY, Sample, leaks
from tests.soak.soak import soak

CYCLES = int(os.environ.get("SANDBOX_SOAK_CYCLES", "30"))
SEED = 2


@pytest.mark.timeout(120 + 5 * CYCLES)
async def test_cycles_with_faults_leave_nothing(template: Template, capsys: pytest.CaptureFixture[str]) -> None:
    """Every lease is accounted for, every answer is right, and the process holds no more than before."""
    evidence = Evidence(CYCLES, SEED)
    await soak(evidence, None, template)
    with capsys.disabled():
        print(f"\nsoak: N = {evidence.account.cycles} cycles, seed {SEED}, {evidence.pool}")  # noqa: T201 - a figure
    assert evidence.verdict() == []
    assert evidence.pool["claimed"] == evidence.pool["released"] + evidence.pool["lost"]


def _samples(**grows: int) -> list[Sample]:
    noise = random.Random(1)
    names = [name for name in Sample.__dataclass_fields__ if name != "cycle"]
    return [
        Sample(cycle=10 * at, **{name: 1000 + at * grows.get(name, 0) + noise.randrange(3) for name in names})
        for at in range(60)
    ]


@pytest.mark.parametrize("name", [name for name in Sample.__dataclass_fields__ if name not in ("cycle", "free_kib")])
def test_whatever_grows_is_told(name: str) -> None:
    """The control: one more of anything in each batch is a leak, half a MiB of memory; noise alone is none."""
    assert leaks(_samples()) == []
    (line,) = leaks(_samples(**{name: 500 if name in ALLOWED_MEMORY else 1}))
    assert name in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_soak_that_is_told_to_stop_can_be_resumed(template: Template, tmp_path: Path, number: int) -> None:
    """It ends the cycles that run, keeps evidence without a fault, leaves no VM, and another process does the rest."""
    path = tmp_path / "soak.json"
    stopped = await asyncio.create_subprocess_exec(*_command(path, 1000), stderr=PIPE)
    assert stopped.stderr is not None
    runtime = template.host.rundir.path.parent
    while not any(_number(name) > 6 for name in await asyncio.to_thread(_machines_of, stopped.pid, runtime)):
        assert stopped.returncode is None
        await anyio.sleep(0.02)
    stopped.send_signal(number)
    with anyio.fail_after(60):
        _, told = await stopped.communicate()
    assert stopped.returncode == 128 + number, told.decode()
    assert b"unfinished" in told
    first = await asyncio.to_thread(Evidence.load, path)
    assert first.verdict() == []
    assert 0 < first.account.cycles < first.wanted
    assert await asyncio.to_thread(_machines_of, stopped.pid, runtime) == []

    first.wanted = first.account.cycles + 6
    await asyncio.to_thread(first.save, path)
    rest = await asyncio.create_subprocess_exec(*_command(path, first.wanted), stderr=PIPE)
    with anyio.fail_after(120):
        _, told = await rest.communicate()
    assert rest.returncode == 0, told.decode()
    second = await asyncio.to_thread(Evidence.load, path)
    assert second.is_complete
    assert len(second.processes) == 2


def _command(path: Path, cycles: int) -> list[str]:
    how = "--resume" if path.exists() else "--out"
    return [sys.executable, "-m", "tests.soak.soak", str(cycles), "--seed", str(SEED), how, str(path)]


def _machines_of(pid: int, runtime: Path) -> list[str]:
    return [machine.name for owner in owners(runtime) if owner.pid == pid for machine in owner.machines]


def _number(name: str) -> int:
    """Return the how-manieth VM of its process this is: beyond the first few, callers have had some."""
    return int(name.rpartition("-")[2])


def test_tables_that_have_grown_do_not_grow_again() -> None:
    """What a soak has done to the interpreter before it counts anything is done: ten times as much adds nothing."""
    grow_tables()
    before = malloc_kib()
    for number in range(600_000):
        sys.intern(f"gone-later-{number}")
    assert malloc_kib() - before < 300


async def test_time_that_others_use_is_not_our_lateness() -> None:
    """A loop that works beside another process on one processor is late by the other's share too, and that is told."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
    lag = Lag()
    try:
        async with lag.watch():
            for _ in range(5):
                await asyncio.sleep(0)
                began = time.thread_time()
                while time.thread_time() < began + 0.1:
                    pass
    finally:
        os.sched_setaffinity(0, processors)
        other.kill()
        await other.wait()
    assert lag.own.worst_ms > 80, "the loop's own work"
    assert lag.whole.worst_ms > lag.own.worst_ms + 50
    worst = lag.worst[0]
    assert worst.own == lag.own.worst_ms
    assert worst.ran > 80
    assert worst.waited > 50
    assert any("test_time_that_others_use_is_not_our_lateness" in frame for frame in worst.where), worst.where


async def test_lateness_by_the_collector_or_another_thread_is_told_apart() -> None:
    """What CPython's collector takes, and a thread that keeps the interpreter's lock, each has its own number."""
    lag = Lag()
    kept: list[object] = [[] for _ in range(2_000_000)]
    async with lag.watch():
        await asyncio.sleep(0)
        gc.collect()
        async with asyncio.timeout(5):
            while not any(moment.collected > 20 for moment in lag.worst):  # noqa: ASYNC110 - its next look tells nobody
                await asyncio.sleep(0)
    assert len(kept) == 2_000_000
    lag = Lag()
    async with lag.watch():
        await asyncio.sleep(0)  # it looks from now on
        await asyncio.to_thread(sum, range(20_000_000))  # one call into C, with the lock from its begin to its end
        async with asyncio.timeout(5):
            while not any(moment.others_ran > 20 for moment in lag.worst):  # noqa: ASYNC110 - its next look tells nobody
                await asyncio.sleep(0.001)
    worst = lag.worst[0]
    assert worst.others_ran > 5 * worst.ran
    assert worst.collected == 0


def test_interrupted_soak_goes_on_where_it_was(tmp_path: Path) -> None:
    """Evidence that was read back is the evidence that was written, but for the samples that are thinned out."""
    evidence = Evidence(100, 7, processes=[Process({"cores": 2}, _samples()[:30], 1.0)], pool={"claimed": 3})
    evidence.account.cycles, evidence.account.wrong = 12, ["cycle 3: wrong"]
    evidence.save(tmp_path / "soak.json")
    again = Evidence.load(tmp_path / "soak.json")
    assert again == evidence
    assert not again.is_complete
    assert again.verdict() == ["cycle 3: wrong"]
