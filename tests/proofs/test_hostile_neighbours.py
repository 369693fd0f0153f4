"""VMs that flood the host in their agents' name, beside an honest one: as if they had only burnt processor time."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sandbox.bench.figure import percentile
from sandbox.guest.context import Context
from sandbox.guest.execution import Execution
from sandbox.template.template import Template
from sandbox.vm import VM
from sandbox.wire import Kind, encode
from tests.programs.hostile import LIBC, STEAL_PORT, STOP_AGENT
from tests.soak.lag import Lag
from tests.waiting import until_written

NEIGHBOURS = int(os.environ.get("SANDBOX_HOSTILE_NEIGHBOURS", "2"))
ROUNDS = 2
CALLS = 100
WORSE = 2.0
"""So much longer than beside silent ones the slowest calls may take."""
LATEST_MS = 10.0
MIB = 1024 * 1024
GROWTH_BYTES = 8 * MIB
"""What one hostile VM may make this process keep; see docs/confinement.md."""
BURN = "print('begun', flush=True)\nwhile True: pass"
FLOOD = "import sys\n" + LIBC + STEAL_PORT + "os.set_blocking(port, True)\nblock = bytes.fromhex(sys.argv[1]) * 2000\n"
FLOOD += "print('begun', flush=True); time.sleep(1)\n" + STOP_AGENT
FLOOD += "while True:\n    left = block\n    while left: left = left[os.write(port, left):]"
FLOODS = {
    "one stream": (Kind.OUT,),
    "both streams in turn": (Kind.OUT, Kind.ERR),
}


@dataclass
class Seen:
    """What the honest VM's calls took, and how late the loop was, beside one kind of neighbour."""

    calls: list[float] = field(default_factory=list)
    lag: Lag = field(default_factory=Lag)

    async def measure(self, context: Context) -> None:
        async with self.lag.watch():
            for _ in range(CALLS):
                started = time.monotonic()
                (await context.run("1 + 1")).check()
                self.calls.append(time.monotonic() - started)


async def _burn(vm: VM) -> Execution:
    execution = await vm.spawn(["python3", "-c", BURN], user="root", timeout=300)
    await until_written(execution, 1)
    return execution


async def _flood(vm: VM, kinds: tuple[Kind, ...]) -> Execution:
    """Have it send frames of one byte, as fast as it can, in the name of its agent, which it has stopped."""
    client = vm._client
    number = client.executions._last_number + 1
    frames = b"".join(encode(kind, client._epoch, number, b"x") for kind in kinds)
    execution = await vm.spawn(["python3", "-c", FLOOD, frames.hex()], user="root", timeout=300, capture_bytes=4096)
    assert execution.number == number
    await until_written(execution, 20_000)
    return execution


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FLOODS)
async def test_floods_cost_others_no_more_than_silence(
    template: Template, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loop stays free, an honest neighbour's slowest calls do not double, and the host's memory does not grow."""
    beside_silent, beside_floods, frames = Seen(), Seen(), 0
    async with template.lease() as honest, honest.context() as context:
        for _ in range(ROUNDS):
            async with AsyncExitStack() as stack:
                hostile = [await stack.enter_async_context(template.lease()) for _ in range(NEIGHBOURS)]
                burning = [await _burn(vm) for vm in hostile]
                await beside_silent.measure(context)
                for execution in burning:
                    execution.kill()
                    await execution.wait()
                before = _resident()
                flooding = [await _flood(vm, FLOODS[name]) for vm in hostile]
                begun = sum(vm._client._inbox.frames for vm in hostile)
                await beside_floods.measure(context)
                frames += sum(vm._client._inbox.frames for vm in hostile) - begun
                growth = (_resident() - before) / NEIGHBOURS
                lost = [vm.loss for vm in hostile if vm.loss is not None]
                assert not lost
                assert all(not execution.has_ended for execution in flooding)
    p95, p99 = (percentile(beside_floods.calls, each) / percentile(beside_silent.calls, each) for each in (95, 99))
    own = beside_floods.lag.own
    with capsys.disabled():
        sys.stdout.write(
            f"\n{NEIGHBOURS} VMs, {name}: {frames} frames; {p95:.2f} times the p95 and {p99:.2f} times the p99 "
            f"of being beside silent ones, N={len(beside_floods.calls)} each; the loop was late by {own.p99_ms:.1f} ms "
            f"(p99), {own.worst_ms:.1f} ms (worst), else {beside_silent.lag.own.p99_ms:.1f} ms; "
            f"{growth / MIB:.1f} MiB for each\n"
        )
    assert frames > 1000 * NEIGHBOURS, "they did flood"
    assert own.p99_ms < LATEST_MS
    assert growth < GROWTH_BYTES
    assert p95 <= WORSE, "the p99 of some hundred calls is the machine's mood: it is printed"


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
