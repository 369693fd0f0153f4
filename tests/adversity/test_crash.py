"""Our own process is killed: what it leaves ends by itself or is ended by the next one, and nobody else's is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox.config import HostConfig
from sandbox.hypervisor.process import Process
from sandbox.hypervisor.rundir import RunDirectory, reap, stale
from sandbox.template.template import Template

HOLDER = """
import asyncio, json, sys
from sandbox import PoolConfig, VMPool

async def main():
    config = PoolConfig(min_size=2, running_ready=0 if sys.argv[1] == "pause" else 2, warm_up=False)
    async with VMPool(config) as pool:
        await pool.wait_ready()
        lease = await pool.claim()
        host = lease.vm._machine._host
        if sys.argv[1] != "run":
            await pool.wait_ready()
            shelf = pool._keeper.shelves["default"]
            while sys.argv[1] == "pause" and not all(slot._is_stopped for slot in shelf.paused):
                await asyncio.sleep(0.01)
        if sys.argv[1] == "stop":  # a guest that cannot notice that its host is gone, and nothing that ends it
            import os, signal
            os.kill(host.undertaker.pid, signal.SIGKILL)
            for slot in pool._keeper.shelves["default"].slots:
                if slot.vm:
                    os.kill(slot.vm.pid, signal.SIGSTOP)
        print(json.dumps({"name": lease.vm.name}), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def _held(mode: str) -> tuple[subprocess.Popen[bytes], Path, list[Process]]:
    """Start a process that holds VMs; return it, its run directory and the VMs."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, mode], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    name = json.loads(holder.stdout.readline())["name"]
    rundir = HostConfig().runtime_dir / name.split("-")[1]
    machines = Process.find(f"{rundir}/")
    assert len(machines) >= 2
    return holder, rundir, machines


@pytest.mark.usefixtures("template")
def test_next_start_ends_what_a_killed_process_left() -> None:
    """After SIGKILL, even VMs that do not notice are found by their run directory and ended, and it is removed."""
    holder, rundir, machines = _held("stop")
    bystander = RunDirectory.create(rundir.parent)
    assert rundir.is_dir()
    holder.kill()
    holder.communicate()
    assert all(machine.is_alive for machine in machines), "the control: without a reaper they stay"
    assert stale(rundir.parent) == 1
    assert reap(rundir.parent) == 1
    assert all(machine.wait_dead_blocking(0) for machine in machines)
    assert not rundir.exists()
    assert bystander.path.exists(), "a living process's directory is not touched"
    bystander.remove()
    for machine in machines:
        machine.close()


@pytest.mark.usefixtures("template")
def test_guests_end_by_themselves_when_their_host_is_gone() -> None:
    """A guest whose channel closes powers off, and its QEMU ends: no orphan waits for the next start."""
    holder, rundir, machines = _held("run")
    holder.kill()
    holder.communicate()
    assert all(machine.wait_dead_blocking(10) for machine in machines)
    for machine in machines:
        machine.close()
    reap(rundir.parent)
    assert not rundir.exists()


@pytest.mark.usefixtures("template")
def test_paused_vms_do_not_outlive_a_killed_process() -> None:
    """Nothing else of ours starts, and within a second after SIGKILL they are dead, as are those that run."""
    holder, rundir, machines = _held("pause")
    holder.kill()
    killed = time.monotonic()
    holder.communicate()
    dead = [machine.wait_dead_blocking(killed + 1 - time.monotonic()) for machine in machines]
    for machine in machines:
        machine.close()
    reap(rundir.parent)
    assert dead == [True] * len(machines)


def test_process_is_never_mistaken_for_another() -> None:
    """A pid whose command line lacks the mark is not opened; a dead one is not either."""
    with subprocess.Popen(["sleep", "1005"]) as sleeper:
        try:
            assert Process.open(sleeper.pid, "guest=") is None
            process = None
            while process is None:  # between fork and exec the child still bears our own command line
                process = Process.open(sleeper.pid, "1005")
            assert process.kill()
            assert process.wait_dead_blocking(5)
            assert Process.open(sleeper.pid, "1005") is None, "a zombie has no command line"
            process.close()
        finally:
            sleeper.kill()


def test_run_directory_of_another_user_is_refused(tmp_path: Path, template: Template) -> None:
    """A runtime directory that somebody else owns is not trusted."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(Exception, match="belongs to another user"):
        RunDirectory.create(tmp_path)


def test_foreign_directories_are_never_cleared(tmp_path: Path) -> None:
    """Whatever else lies in the runtime directory stays, even if it is named alike or holds a file called lock."""
    for name in ("project", "deadbeef", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        (tmp_path / name / "data").touch()
    ours = RunDirectory.create(tmp_path)
    (ours.path / "file").touch()
    assert reap(tmp_path) == 0
    ours.remove()
    assert sorted(path.name for path in tmp_path.glob("*/data")) == ["data"] * 3
    assert not ours.path.exists()


def test_empty_husks_are_removed_and_nothing_else(tmp_path: Path) -> None:
    """What libvirt's threads make again after the end is empty and goes; a file keeps its directory."""
    (tmp_path / "0123abcd" / "l" / "run" / "qemu").mkdir(parents=True)
    (tmp_path / "4567abcd" / "l" / "run" / "qemu").mkdir(parents=True)
    (tmp_path / "4567abcd" / "l" / "precious").touch()
    reap(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["4567abcd"]
    assert (tmp_path / "4567abcd" / "l" / "precious").exists()
