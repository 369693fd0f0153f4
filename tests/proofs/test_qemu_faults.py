"""QEMU is killed or stopped in every phase of a VM's life: each lease is accounted for, the pool fills up again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from sandbox.certificate import Cause
from sandbox.config import PoolConfig
from sandbox.errors import GuestLost, StateError
from sandbox.guest import watchdog
from sandbox.hypervisor import threads
from sandbox.hypervisor.process import Process
from sandbox.pool import health
from sandbox.pool.lease import Lease
from sandbox.pool.pool import VMPool
from sandbox.pool.slot import Slot, SlotState
from sandbox.template.template import Template

SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
CALL_SECONDS, SILENCE_SECONDS = 1.5, 0.5
BACK_SECONDS = 30.0
MIB = 1024 * 1024


@pytest.fixture
async def pool(template: Template, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VMPool]:
    """A pool with one running and one paused VM, and with deadlines for hanging calls that a test can wait for."""
    monkeypatch.setattr(threads, "CALL_SECONDS", CALL_SECONDS)
    monkeypatch.setattr(watchdog, "SILENCE_SECONDS", SILENCE_SECONDS)
    async with VMPool(PoolConfig(min_size=2, max_size=4, running_ready=1, warm_up=False), source=template) as pool:
        await _at_target(pool)
        yield pool


def _slots(pool: VMPool) -> set[Slot]:
    return pool._keeper.shelves["default"].slots


async def _at_target(pool: VMPool, *leased: SlotState) -> None:
    """Return when one VM runs, one is paused, and nothing else is under way, besides leases."""
    with anyio.fail_after(BACK_SECONDS):
        while not _is_at_target(pool, *leased):  # noqa: ASYNC110 - libvirt pauses in a thread
            await anyio.sleep(0.01)


def _is_at_target(pool: VMPool, *leased: SlotState) -> bool:
    states = sorted(slot.state for slot in _slots(pool))
    return states == [*leased, SlotState.PAUSED, SlotState.READY] and any(slot._is_stopped for slot in _slots(pool))


def _pid_in(pool: VMPool, state: SlotState) -> int:
    (pid,) = (slot.vm.pid for slot in _slots(pool) if slot.state is state and slot.vm is not None)
    return pid


async def _claim_and_run(pool: VMPool, number: signal.Signals) -> None:
    """Strike the VM that is claimed next: the caller hears of it, or is served by another."""
    async with pool.acquire(timeout=BACK_SECONDS) as vm:
        try:
            result = await vm.run("print(1)", timeout=2)
        except GuestLost:
            return
        assert result.text == "1\n" or (result.timed_out and number is signal.SIGSTOP)


async def _starting(template: Template, pool: VMPool, number: signal.Signals) -> None:
    """A QEMU that has just appeared does not become ready: its restore is tried once more, and nothing of it stays."""
    known = {slot.vm.pid for slot in _slots(pool) if slot.vm is not None}
    leases = [await pool.claim(BACK_SECONDS) for _ in range(2)]
    with anyio.fail_after(BACK_SECONDS):
        while not (fresh := await anyio.to_thread.run_sync(_pids, template) - known):
            await anyio.lowlevel.checkpoint()
    victim = fresh.pop()
    with suppress(ProcessLookupError):
        os.kill(victim, number)
    for lease in leases:
        await lease.release()
    with anyio.fail_after(BACK_SECONDS):  # also one that was stopped does not stay
        while victim in await anyio.to_thread.run_sync(_pids, template):  # noqa: ASYNC110 - nobody holds it any more
            await anyio.sleep(0.05)


def _pids(template: Template) -> set[int]:
    """Return every QEMU process of this one, whatever the pool knows of it."""
    found = Process.find(f"{template.host.rundir.path}/")
    for process in found:
        process.close()
    return {process.pid for process in found}


async def _warm(_: Template, pool: VMPool, number: signal.Signals) -> None:
    os.kill(_pid_in(pool, SlotState.READY), number)
    await _claim_and_run(pool, number)


async def _paused(_: Template, pool: VMPool, number: signal.Signals) -> None:
    os.kill(_pid_in(pool, SlotState.PAUSED), number)
    for _claim in range(2):
        await _claim_and_run(pool, number)


async def _idle(_: Template, pool: VMPool, number: signal.Signals) -> None:
    async with pool.acquire(timeout=BACK_SECONDS) as vm:
        os.kill(vm.pid, number)
        if number is signal.SIGKILL:
            with anyio.fail_after(1):
                while vm.is_alive:  # noqa: ASYNC110 - it must not take longer
                    await anyio.sleep(0.001)
        with suppress(GuestLost, StateError):  # the latter if the pool has ended the lease already
            assert (await vm.run("print(1)", timeout=0.5)).timed_out
        assert not vm.is_alive
    assert pool.statistics().lost == 1


async def _struck_during(lease: Lease, work: Awaitable[object], number: signal.Signals) -> None:
    task = asyncio.ensure_future(work)
    await anyio.sleep(0.02)
    os.kill(lease.vm.pid, number)
    with anyio.fail_after(10), pytest.raises(GuestLost):
        await task
    await lease.release()


async def _running(_: Template, pool: VMPool, number: signal.Signals) -> None:
    lease = await pool.claim(BACK_SECONDS)
    await _struck_during(lease, lease.vm.run("while True: pass"), number)
    assert pool.statistics().lost == 1


async def _transferring(_: Template, pool: VMPool, number: signal.Signals) -> None:
    lease = await pool.claim(BACK_SECONDS)
    await _struck_during(lease, lease.vm.write_file("large", bytes(16 * MIB)), number)
    assert pool.statistics().lost == 1


async def _releasing(_: Template, pool: VMPool, number: signal.Signals) -> None:
    lease = await pool.claim(BACK_SECONDS)
    pid = lease.vm.pid
    lease.release_nowait()
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    with anyio.fail_after(10):
        await lease.release()
    assert pool.statistics().released == 1


PHASES: dict[str, Callable[[Template, VMPool, signal.Signals], Awaitable[None]]] = {
    "starting": _starting,
    "warm": _warm,
    "paused": _paused,
    "leased and idle": _idle,
    "running": _running,
    "transferring": _transferring,
    "releasing": _releasing,
}


@pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
@pytest.mark.parametrize("phase", PHASES)
async def test_struck_in_every_phase(template: Template, pool: VMPool, phase: str, number: signal.Signals) -> None:
    """Whoever uses the VM hears of its end in bounded time, the books balance, and the pool is at its target again."""
    await PHASES[phase](template, pool, number)
    await _at_target(pool)
    record = pool.statistics()
    assert record.claimed == record.released + record.lost
    assert record.created == record.destroyed + record.ready
    async with pool.acquire(timeout=BACK_SECONDS) as vm:
        assert (await vm.run("print(6 * 7)", timeout=30)).text == "42\n"


async def test_stopped_vms_are_found_although_nobody_uses_them(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running one, a paused one and an idle lease: all are lost, the lease says so, and the pool has others ready."""
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.3)
    async with VMPool(PoolConfig(min_size=2, max_size=4, running_ready=1, warm_up=False), source=template) as pool:
        await _at_target(pool)
        async with pool.acquire(timeout=BACK_SECONDS) as vm:
            await _at_target(pool, SlotState.LEASED)
            struck = [vm.pid, _pid_in(pool, SlotState.READY), _pid_in(pool, SlotState.PAUSED)]
            for pid in struck:
                os.kill(pid, signal.SIGSTOP)
            with anyio.fail_after(2):
                while vm.is_alive:  # noqa: ASYNC110 - it is told by a callback, to the pool
                    await anyio.sleep(0.01)
            assert vm.loss is not None
            assert vm.loss.certificate is not None
            assert (vm.loss.certificate.cause, "stopped" in str(vm.loss)) == (Cause.UNRESPONSIVE, True)
        with anyio.fail_after(BACK_SECONDS):
            while not (await anyio.to_thread.run_sync(_pids, template)).isdisjoint(struck):  # noqa: ASYNC110 - as above
                await anyio.sleep(0.05)
        await _at_target(pool)
        assert pool.statistics().lost == 1
