"""`sandbox ps`, `audit` and `reap`: what exists, who owns it, and what belongs to nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from anyio.to_thread import run_sync

from sandbox.config import HostConfig
from sandbox.hypervisor.inventory import find_machines, leaks, owners
from sandbox.hypervisor.rundir import reap
from sandbox.template.template import Template

SANDBOX = [sys.executable, "-m", "sandbox"]
HOLDER = """
import asyncio, sys
from sandbox import Template
async def main():
    async with (await Template.ensure()).lease() as vm:
        print(vm.name, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def sandbox(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SANDBOX, *arguments], capture_output=True, text=True, check=False, timeout=60)


async def test_vm_is_listed_with_its_owner(template: Template) -> None:
    """A leased VM appears with this process as its owner; nothing of it remains afterwards."""
    runtime = HostConfig().runtime_dir
    async with template.lease() as vm:
        mine = next(record for record in await run_sync(owners, runtime) if record.pid == os.getpid())
        assert mine.is_alive
        assert [machine.pid for machine in mine.machines if machine.name == vm.name] == [vm.pid]
        assert mine.machines[0].memory_mib is not None
        assert mine.sockets == []
        assert mine.descriptors["pidfds"] >= 1
        name = vm.name
    assert name not in [machine.name for machine in await run_sync(find_machines, runtime)]


def test_killed_owner_is_a_leak_until_it_is_reaped() -> None:
    """`audit` fails for what a killed process left, `reap` ends it, and then `audit` is clean."""
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        name = holder.stdout.readline().strip()
        listed = json.loads(sandbox("ps", "--json").stdout)
        machine = next(machine for record in listed for machine in record["machines"] if machine["name"] == name)
        assert name in sandbox("ps").stdout
        before = leaks(HostConfig().runtime_dir)
        os.kill(machine["pid"], signal.SIGSTOP)  # it would notice its owner's death and end by itself
        holder.kill()
    directory = name.split("-")[1]
    assert not [line for line in before if directory in line]
    found = sandbox("audit")
    assert found.returncode == 1
    assert sum(directory in line for line in found.stdout.splitlines() if line.startswith("LEAK")) >= 1
    assert sandbox("reap").returncode == 0
    assert not [line for line in leaks(HostConfig().runtime_dir) if directory in line]
    assert name not in [machine.name for machine in find_machines(HostConfig().runtime_dir)]


def test_doctor_proves_that_clones_differ() -> None:
    """Two clones are restored, compared, and their clocks measured."""
    done = sandbox("doctor", "--clones", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["clones"]["status"] == "ok"
    assert "machine id" in checks["clones"]["found"]
    assert (checks["clock"]["status"], checks["receipts"]["status"]) == ("ok", "ok")


def test_husks_of_run_directories_go_and_nothing_else_does(tmp_path: Path) -> None:
    """What libvirt wrote after the end is removed; a stranger's directory of such a name is not touched."""
    husk, other = tmp_path / "0123abcd", tmp_path / "89abcdef"
    for path, name in ((husk, "sbx-0123abcd-7.xml.new"), (other, "mine.txt")):
        (path / "l/run/qemu").mkdir(parents=True)
        (path / "l/run/qemu" / name).write_text("")
    assert reap(tmp_path) == 0
    assert not husk.exists()
    assert (other / "l/run/qemu/mine.txt").exists()
