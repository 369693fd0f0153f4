"""Anomalies of real VMs: the one that burns processor time is named, and ended only where that was asked for."""

from __future__ import annotations

import anyio
import pytest

from sandbox.config import PoolConfig
from sandbox.errors import GuestLost
from sandbox.event import EventKind, LifeEvent
from sandbox.observe.anomaly import Anomalies
from sandbox.observe.rules import CpuStorm, SpawnStorm
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template

SECONDS = 90.0
"""Until something must have been found, on a host that has much else to do."""
CORES = 0.25
FOR_SECONDS = 3.0


class Witness:
    """Keeps all events and lets a test wait for the first anomaly."""

    def __init__(self) -> None:
        self.events: list[LifeEvent] = []
        self.found = anyio.Event()

    def __call__(self, event: LifeEvent) -> None:
        self.events.append(event)
        if event.kind is EventKind.ANOMALY:
            self.found.set()

    @property
    def anomalies(self) -> list[LifeEvent]:
        return [event for event in self.events if event.kind is EventKind.ANOMALY]


async def test_busy_vm_is_named_and_goes_on(template: Template) -> None:
    """By default a VM that burns processor time is warned of, the quiet one beside it is not, and both live on."""
    witness = Witness()
    watch = Anomalies([CpuStorm(cores=CORES, seconds=FOR_SECONDS)], interval=0.25)
    config = PoolConfig(min_size=2, max_size=2)
    async with VMPool(config, source=template.warmed(), observers=[watch, witness]) as pool:
        await pool.wait_ready()
        async with pool.acquire() as busy, pool.acquire() as quiet:
            burning = await busy.spawn(["python3", "-c", "while True: pass"])
            await quiet.spawn(["sleep", "1000"])
            with anyio.fail_after(SECONDS):
                await witness.found.wait()
            assert (await quiet.run("print(1)", timeout=30)).text == "1\n"
            assert not burning.has_ended
            assert (await busy.exec("echo alive", timeout=30)).text == "alive\n"
            names = busy.name, quiet.name
    assert {event.vm for event in witness.anomalies} == {names[0]}
    told = witness.anomalies[0]
    assert (told.fields["rule"], told.fields["did"], told.template) == ("cpu_storm", "warned", "default")
    assert told.lease.startswith(names[0])


async def test_busy_vm_is_ended_when_told_to(template: Template) -> None:
    """Its lease ends as killed and whoever waits is told; the quiet VM keeps its lease and the pool fills up again."""
    witness = Witness()
    watch = Anomalies([CpuStorm(cores=CORES, seconds=FOR_SECONDS, kill=True)], interval=0.25)
    config = PoolConfig(min_size=2, max_size=4)
    async with VMPool(config, source=template.warmed(), observers=[watch, witness]) as pool:
        await pool.wait_ready()
        async with pool.acquire() as busy, pool.acquire() as quiet:
            with anyio.fail_after(SECONDS), pytest.raises(GuestLost):
                await busy.run("while True: pass")
            assert not busy.is_alive
            assert (await quiet.run("print(1)", timeout=30)).text == "1\n"
            names = busy.name, quiet.name
        await pool.wait_ready()
        statistics = pool.statistics()
    ends = {event.vm: event.fields["why"] for event in witness.events if event.kind is EventKind.LEASE_ENDED}
    assert ends == {names[0]: "killed", names[1]: "released"}
    assert [(event.vm, event.fields["did"]) for event in witness.anomalies] == [(names[0], "killed")]
    assert statistics.claimed == statistics.released == 2
    kinds = [event.kind for event in witness.events if event.vm == names[0]]
    assert kinds.index(EventKind.ANOMALY) < kinds.index(EventKind.VM_DESTROYED)


async def test_storm_of_programs_is_counted_on_the_host(template: Template) -> None:
    """A VM in which many programs are started is ended; everybody hears of its end after what caused it."""
    before, after = Witness(), Witness()
    watch = Anomalies([SpawnStorm(per_second=1.0, seconds=20.0, kill=True)])
    config = PoolConfig(min_size=1, max_size=2)
    async with VMPool(config, source=template.warmed(), observers=[before, watch, after]) as pool:
        async with pool.acquire() as vm:
            with anyio.fail_after(SECONDS):
                for _ in range(19):
                    await vm.exec(["true"])
                with pytest.raises(GuestLost):
                    await vm.exec(["true"])
        assert pool.statistics().released == 1
    assert before.events == after.events
    starts = [event for event in after.events if event.kind is EventKind.EXECUTION_STARTED]
    assert len(starts) == 20
    assert after.events.index(starts[-1]) < after.events.index(after.anomalies[0])
