"""Guests that burn a processor leave it to the process that serves them."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from anyio import to_thread

from sandbox.config import HostConfig
from sandbox.errors import ConfigError
from sandbox.hypervisor import midwife, priority
from sandbox.hypervisor.confinement import Confinement
from sandbox.template.template import Template
from sandbox.vm import VM

BURN = ["python3", "-c", "while True: pass"]
CONTEST_SECONDS = 1.0


def _threads(pid: int) -> list[int]:
    return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]


@asynccontextmanager
async def _burning(template: Template, count: int) -> AsyncIterator[list[VM]]:
    """So many VMs, each with a program that never rests, and all of them on our own processor."""
    here = os.sched_getaffinity(0)
    processor = {min(here)}
    async with AsyncExitStack() as stack:
        vms = [await stack.enter_async_context(template.lease()) for _ in range(count)]
        for vm in vms:
            await vm.spawn(BURN, timeout=60)
            for thread in _threads(vm.pid):
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, processor)
        os.sched_setaffinity(0, processor)
        try:
            yield vms
        finally:
            os.sched_setaffinity(0, here)


async def _priorities(vms: list[VM]) -> list[tuple[int, int | None]]:
    seen = [await to_thread.run_sync(Confinement.of, pid) for pid in (os.getpid(), *(vm.pid for vm in vms))]
    return [(each.nice, each.session_nice) for each in seen]


def _nice(thread: int) -> int | None:
    try:
        return os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:  # QEMU ends threads that have nothing to do
        return None


async def _share(vms: list[VM]) -> float:
    """Return what a child of ours that never rests gets of the processor time that goes to it and to these VMs.

    What other processes and the host's own host take meanwhile belongs to nobody here, and changes no weight.
    """
    burner = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")  # in our session, pinned
    pids = [burner.pid, *(vm.pid for vm in vms)]
    try:
        before = [_used(pid) for pid in pids]
        async with asyncio.timeout(60):
            while True:
                await asyncio.sleep(0.1)  # between two looks: nothing tells that processor time was used
                got = [_used(pid) - then for pid, then in zip(pids, before, strict=True)]
                if sum(got) > CONTEST_SECONDS:
                    return got[0] / sum(got)
    finally:
        burner.kill()
        await burner.wait()


def _used(pid: int) -> float:
    """Return the processor time of a process, by its clock (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


async def test_every_thread_of_a_vm_yields(template: Template, vm: VM) -> None:
    """QEMU's own threads, the virtual processor's and those that it starts later; the session too, where it counts."""
    (await vm.run("print(1)")).check()
    ours, by = os.getpriority(os.PRIO_PROCESS, os.getpid()), template.host.starter._nice
    assert by > 0
    assert {_nice(thread) for thread in _threads(vm.pid)} - {None} == {min(19, ours + by)}
    if os.geteuid() == 0:  # others may set a session so many times a second on the whole host
        seen = [await to_thread.run_sync(Confinement.of, pid) for pid in (vm.pid, os.getpid())]
        assert seen[0].yields_to(seen[1])
        assert not seen[1].yields_to(seen[0])


async def test_guests_that_burn_leave_the_processor_to_us(
    template: Template, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one processor with two of them we get most of it; the control's, which do not yield, take most of it."""
    async with _burning(template, 2) as vms:
        share, yielding = await _share(vms), await _priorities(vms)
    monkeypatch.setattr(template.host.starter, "_nice", 0)
    async with _burning(template, 2) as vms:
        assert {_nice(vm.pid) for vm in vms} == {os.getpriority(os.PRIO_PROCESS, os.getpid())}
        control = await _share(vms)
    with capsys.disabled():
        print(f"\npriority: {share:.0%} of a processor beside two busy VMs; control {control:.0%}")  # noqa: T201
    assert share > 1.5 * control, f"ours and the VMs', nice and that of the session: {yielding}"


async def test_session_of_a_vm_yields_to_us_outside_any(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a container's first process starts is in no session: its own value competes with that of QEMU's session."""
    ours, read = os.getpid(), priority.session_nice
    monkeypatch.setattr(priority, "session_nice", lambda pid: None if pid == ours else read(pid))
    async with template.lease() as vm:
        yielding = min(19, os.getpriority(os.PRIO_PROCESS, ours) + template.host.starter._nice)
        assert await to_thread.run_sync(read, vm.pid) in {None, yielding}


async def test_vm_whose_start_nobody_could_watch_yields(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host so busy that QEMU was not found while it started: it is looked for once more."""
    monkeypatch.setattr(midwife, "_FIND_SECONDS", 60.0)
    async with template.lease() as vm:
        assert _nice(vm.pid) == min(19, os.getpriority(os.PRIO_PROCESS, os.getpid()) + template.host.starter._nice)


async def test_vm_that_cannot_be_made_to_yield_runs_and_is_told(
    template: Template, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As root without the capability: threads are refused, the session is tried all the same, the VM works."""

    def refuse(*_: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patched, caplog.at_level(logging.INFO, "sandbox"):
        patched.setattr(os, "setpriority", refuse)
        async with template.lease() as vm:
            (await vm.run("print(1)")).check()
            seen = await to_thread.run_sync(Confinement.of, vm.pid)
    assert seen.nice == os.getpriority(os.PRIO_PROCESS, os.getpid())
    assert any("vm_does_not_yield" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("value", ["-1", "20", "much"])
def test_what_nobody_can_yield_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM cannot be put before others, nor below the kernel's last."""
    monkeypatch.setenv("SANDBOX_NICE", value)
    with pytest.raises(ConfigError, match=f"nice.*{value}.*SANDBOX_NICE"):
        HostConfig()
