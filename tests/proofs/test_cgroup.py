"""A VM's control group on this host: its bounds, its end, what is left of it, and death for want of memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from sandbox.certificate import Cause
from sandbox.config import HostConfig
from sandbox.errors import GuestLost
from sandbox.hypervisor.cgroup_place import Places, find_places, hierarchies
from sandbox.hypervisor.groups import BASE, Groups, left_over, reap_left_over
from sandbox.hypervisor.inventory import leaks
from sandbox.hypervisor.rundir import GROUPS_FILE, group_name, reap
from sandbox.result import Outcome
from sandbox.template.template import Template

MIB = 1024 * 1024
FILL = "import os\nkept = [os.urandom(1 << 20) for _ in range({mib})]\nprint(len(kept))"
HOLDER = """
import asyncio, sys
from sandbox.template.template import Template

async def main():
    template = await Template.ensure()
    async with template.lease() as vm:
        print(template.host.rundir.path, vm.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def places() -> Places:
    """Where this host lets us make groups without being told."""
    found = find_places("auto", ("memory", "pids"))
    if not found.parents:
        pytest.skip(f"this host allows no control groups: {found.refused}")
    return found


@pytest.fixture
async def memory_groups(template: Template, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Groups]:
    """Groups that bound memory, below the group that this process is in, for the length of a test."""
    tree = (await to_thread.run_sync(hierarchies)).get("memory")
    if tree is None or tree.version != 1 or os.geteuid() != 0:
        pytest.skip("needs root and a memory controller of version 1; test_cgroup_v2.py has version 2")
    host = template.host
    places = Places({"memory": tree.own}, {"memory": 1})
    groups = await to_thread.run_sync(Groups, host.rundir.path, places)
    monkeypatch.setattr(host.starter, "groups", groups)
    yield groups
    await to_thread.run_sync(groups.close)
    await to_thread.run_sync((tree.own / BASE).rmdir)


def _bound(pid: int, controller: str) -> int:
    """Return the bound that the kernel has for a process's memory in bytes, or for its threads."""
    tree = hierarchies(str(pid))[controller]
    name = "memory.limit_in_bytes" if (controller, tree.version) == ("memory", 1) else f"{controller}.max"
    return int((tree.own / name).read_text())


async def test_a_vm_is_in_a_group_with_bounds_and_the_group_goes_with_it(template: Template, places: Places) -> None:
    """The kernel says that QEMU is in a group of its VM's name, how bounded, and afterwards that it is gone."""
    name = await to_thread.run_sync(group_name, template.host.rundir.path)
    parents = {controller: base / BASE / name for controller, base in places.parents.items()}
    async with template.lease() as vm:
        listed = await anyio.Path(f"/proc/{vm.pid}/cgroup").read_text()
        assert f"/{BASE}/{name}/{vm.name}\n" in listed
        if "pids" in places.parents:
            assert await to_thread.run_sync(_bound, vm.pid, "pids") == 97
        groups = [anyio.Path(parent / vm.name) for parent in parents.values()]
        assert [await group.is_dir() for group in groups] == [True] * len(groups)
        assert (await vm.run("import threading; print(threading.active_count())", timeout=30)).text == "1\n"
    assert [await group.exists() for group in groups] == [False] * len(groups)


async def test_memory_is_bounded_by_the_guests_and_a_stated_overhead(template: Template, memory_groups: Groups) -> None:
    """A guest that fills its memory to the last page runs out inside; its QEMU stays within the bound."""
    async with template.lease() as vm:
        overhead = 96 + (128 if template.host.platform.accelerator == "tcg" else 1)
        assert await to_thread.run_sync(_bound, vm.pid, "memory") == (256 + overhead) * MIB
        result = await vm.run(FILL.format(mib=400), timeout=120)
        assert result.outcome is Outcome.OUT_OF_MEMORY
        assert vm.is_alive
        assert memory_groups.oom_kills(vm.name) == 0


async def test_a_qemu_that_the_hosts_kernel_kills_for_memory_is_told_as_such(
    template: Template, memory_groups: Groups
) -> None:
    """The lease's error has the cause and the kernel's count, and says whose memory it was."""
    async with template.lease() as vm:
        await to_thread.run_sync(_tighten, vm.pid)
        with pytest.raises(GuestLost, match="the host's kernel killed its QEMU for want of memory") as lost:
            await vm.run(FILL.format(mib=150), timeout=120)
    certificate = lost.value.certificate
    assert certificate is not None
    assert certificate.cause is Cause.HOST_OUT_OF_MEMORY
    assert certificate.evidence["host_oom_kills"] == 1
    assert certificate.evidence["qemu_signal"] == signal.SIGKILL


@pytest.mark.usefixtures("memory_groups")
async def test_a_qemu_that_somebody_kills_is_no_matter_of_memory(template: Template) -> None:
    """The control: the same signal in the same group, sent by a person."""
    async with template.lease() as vm:
        execution = await vm.spawn(["sleep", "60"])
        os.kill(vm.pid, signal.SIGKILL)
        with pytest.raises(GuestLost) as lost:
            await execution.wait()
    assert lost.value.certificate is not None
    assert lost.value.certificate.cause is Cause.QEMU_KILLED


async def test_a_limit_of_processors_holds(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that burns gets what it was limited to, by its QEMU's clock, where this host divides processors."""
    if "cpu" not in (await to_thread.run_sync(find_places)).parents:
        pytest.skip("this host lets us divide no processor time")
    groups = await to_thread.run_sync(Groups.open, template.host.rundir.path, "auto", 0.2)
    monkeypatch.setattr(template.host.starter, "groups", groups)
    monkeypatch.setattr(template.host.starter, "_cpu_limit", 0.2)
    async with template.lease() as vm:
        await vm.spawn(["sh", "-c", "while :; do :; done"], timeout=60)
        before, began = _processor_seconds(vm.pid), time.monotonic()
        await anyio.sleep(2)  # for so long it burns
        share = (_processor_seconds(vm.pid) - before) / (time.monotonic() - began)
    await to_thread.run_sync(groups.close)
    assert share < 0.3


def _processor_seconds(pid: int) -> float:
    return time.clock_gettime((~pid << 3) | 2)


async def test_a_group_that_was_tidied_away_is_made_again(template: Template) -> None:
    """Nothing lived in it, so anybody could remove it; the next VM has its bounds all the same."""
    parents = set(template.host.starter.groups._parents.values())
    async with template.lease() as vm:
        assert vm.name in await anyio.Path(f"/proc/{vm.pid}/cgroup").read_text()
    with anyio.fail_after(5):  # the last VM's own group goes first
        while parents := {parent for parent in parents if parent.exists()}:
            for parent in parents:
                with suppress(OSError):
                    parent.rmdir()
            await anyio.sleep(0.02)
    async with template.lease() as vm:
        assert vm.name in await anyio.Path(f"/proc/{vm.pid}/cgroup").read_text()


async def test_without_groups_a_vm_runs_as_ever(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none can be made there is a reason, and no error."""
    groups = await to_thread.run_sync(Groups.open, template.host.rundir.path, "off", None)
    monkeypatch.setattr(template.host.starter, "groups", groups)
    assert groups.places.refused == {"memory": "switched off", "pids": "switched off"}
    async with template.lease() as vm:
        assert vm.name not in await anyio.Path(f"/proc/{vm.pid}/cgroup").read_text()
        assert groups.oom_kills(vm.name) is None
        assert (await vm.run("print(1)", timeout=30)).ok


@pytest.mark.usefixtures("template")
def test_groups_of_a_killed_process_are_named_and_reaped(places: Places) -> None:
    """They stay when their process is killed; the audit names the run directory, and clearing it removes them."""
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        path, pid = holder.stdout.readline().split()
        holder.kill()
    rundir, runtime = Path(path), HostConfig().runtime_dir
    parents = [Path(line) for line in (rundir / GROUPS_FILE).read_text().splitlines()]
    assert len(parents) == len(set(places.parents.values()))
    assert all(parent.is_dir() for parent in parents), f"the control: nobody has removed them yet ({pid})"
    assert any(str(rundir) in line for line in leaks(runtime))
    reap(runtime)
    assert not any(parent.exists() for parent in parents)


def test_a_group_whose_run_directory_is_gone_is_named_and_reaped(tmp_path: Path, places: Places) -> None:
    """Should the directory go and a group stay, the audit finds the group by its name, and reaping removes it."""
    base = next(iter(places.parents.values()))
    group = base / BASE / group_name(tmp_path / "0123abcd")
    (group / "sbx-0123abcd-1").mkdir(parents=True)
    assert leaks(tmp_path) == [f"control group {group}: its run directory is gone"]
    (tmp_path / "0123abcd").mkdir()
    assert left_over(tmp_path) == [], "the control: with a run directory it has an owner"
    (tmp_path / "0123abcd").rmdir()
    assert reap_left_over(tmp_path) == 1
    assert not group.exists()


def _tighten(pid: int) -> None:
    """Leave a QEMU a little more than it has, as a host does that has nothing left."""
    own = hierarchies(str(pid))["memory"].own
    assert own.name.startswith("sbx-"), f"{own} is not a VM's group: a limit there would be everybody's"
    used = int((own / "memory.usage_in_bytes").read_text())
    (own / "memory.limit_in_bytes").write_text(str(used + 8 * MIB))
