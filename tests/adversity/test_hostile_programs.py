"""Programs that want to harm end as documented, within their deadline and two seconds, and do not harm the host."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from sandbox.certificate import Cause
from sandbox.config import Limits
from sandbox.errors import GuestLost
from sandbox.guest.sandbox import RunOptions
from sandbox.hypervisor.process import Process
from sandbox.result import Outcome, Result
from sandbox.template.template import Template
from sandbox.vm import VM
from tests.programs.hostile import HOSTILE, Hostile

MIB = 1024 * 1024
GRACE = 2.5
"""A guest has two seconds to obey a kill, then its VM goes; half a second is for a busy host."""


@pytest.fixture(scope="module", autouse=True)
async def _settled(template: Template) -> None:
    """The first VM of a process opens what stays open, and the second starts the process that attends to them."""
    for _ in range(2):
        async with template.lease():
            pass


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_program_ends_as_documented_and_the_host_is_as_before(template: Template, name: str) -> None:
    """Its end is typed and in time; no process but the VM's QEMU came of it, and no descriptor stays open."""
    hostile = HOSTILE[name]
    descriptors, children = _descriptors(), _children()
    async with template.lease() as vm:
        started = time.monotonic()
        result = await _run(vm, hostile)
        elapsed = time.monotonic() - started
        cause = result.certificate.cause if result.certificate else None
        assert (result.outcome, cause) == (hostile.outcome, hostile.cause), result
        assert elapsed < hostile.timeout + GRACE
        assert await _machines(template) <= {vm.pid}
        assert _children() - children <= {vm.pid}
        await _check_what_is_left(vm, hostile)
    with anyio.fail_after(5):  # libvirt closes what it had of a dead VM within 0.2 s
        while _descriptors() > descriptors:  # noqa: ASYNC110 - and tells nobody
            await anyio.sleep(0.02)
    assert _children() == children


async def test_endless_output_costs_the_host_no_memory_and_ends_at_its_cap(vm: VM) -> None:
    """`yes` is killed within a second of its cap; without a cap, the control, it goes on until its deadline."""
    before = _peak_memory(anew=True)
    capped = await vm.exec("yes", timeout=30, limits=Limits(output_bytes=MIB))
    assert (capped.outcome, capped.certificate and capped.certificate.cause) == (
        Outcome.OUTPUT_LIMIT,
        Cause.OUTPUT_LIMIT,
    )
    assert MIB < capped.stdout_bytes < 2 * MIB
    assert capped.duration < 3
    endless = await vm.exec("yes", timeout=2)
    assert endless.timed_out
    assert endless.stdout_bytes > 8 * MIB
    assert endless.duration < 2 + GRACE
    assert _peak_memory() - before < 32 * MIB
    assert (await vm.run("print(1)")).ok


async def test_a_million_single_bytes_and_thirty_two_writers_at_once(template: Template) -> None:
    """Neither the smallest writes nor many streams lose a byte, mix them, or make the host grow."""
    before = _peak_memory(anew=True)

    async def bytewise() -> None:
        async with template.lease() as vm:
            result = await vm.exec(["perl", "-e", 'syswrite(STDOUT, "x") for 1..1000000'], timeout=60)
            assert (result.ok, result.stdout_bytes) == (True, 1_000_000)

    async def write(vm: VM, number: int) -> None:
        result = await vm.exec(f"yes {number:07} | head -c 256K", timeout=60, capture_bytes=4096)
        assert (result.ok, result.stdout_bytes) == (True, MIB // 4)
        assert set(result.stdout.splitlines()) == {f"{number:07}".encode()}

    async with template.lease() as vm, anyio.create_task_group() as group:
        group.start_soon(bytewise)
        for number in range(32):
            group.start_soon(write, vm, number)
    assert _peak_memory() - before < 32 * MIB


async def _run(vm: VM, hostile: Hostile) -> Result:
    options = RunOptions(user=hostile.user, timeout=hostile.timeout, capture_bytes=4096)
    try:
        return await vm.run(hostile.code, language=hostile.language, **options)
    except GuestLost as lost:
        if lost.partial is None:
            raise
        return lost.partial


async def _check_what_is_left(vm: VM, hostile: Hostile) -> None:
    if hostile.after == "either":
        assert vm.is_alive or (await _is_lost(vm))
    elif hostile.after == "lost":
        assert await _is_lost(vm)
    if not vm.is_alive:
        return
    result = await vm.run("print(6 * 7)", timeout=10)
    if hostile.after == "refuses":  # at the latest when what was made ahead is used up
        result = await vm.run("print(6 * 7)", timeout=10)
        assert result.exit_code in (126, 127)
        assert result.stderr.startswith(b"sandbox: ")
    else:
        assert result.stdout == b"42\n", result


async def _is_lost(vm: VM) -> bool:
    with pytest.raises(GuestLost) as lost:
        await vm.run("")
    return lost.value.certificate is not None and not vm.is_alive


async def _machines(template: Template) -> set[int]:
    """Return every QEMU that this process has started and that lives."""
    machines = await run_sync(Process.find, f"{template.host.rundir.path}/")
    for machine in machines:
        machine.close()
    return {machine.pid for machine in machines}


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _children() -> set[int]:
    """Return this process's children; the kernel's own list of them leaves some out while another one ends."""
    children: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has just ended
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                children.add(int(stat.parent.name))
    return children


def _peak_memory(*, anew: bool = False) -> int:
    """Return the most memory that this process has had; with `anew`, forget what was before first."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
