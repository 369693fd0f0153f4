"""`sandbox ps`, `audit` and `reap`: what exists, who owns it, and what belongs to nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
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
LOOK = """
import json, sys
from pathlib import Path
from sandbox.hypervisor.confinement import Confinement
from sandbox.hypervisor.inventory import find_machines
pid, runtime = int(sys.argv[1]), Path(sys.argv[2])
try:
    may_look = Path(f"/proc/{pid}/root").samefile("/")
except PermissionError:
    may_look = False
names = [machine.name for machine in find_machines(runtime)]
seen = Confinement.of(pid)
print(json.dumps([may_look, names, seen.faults(), seen.writable_files]))
"""
WITHOUT_PTRACE = ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"]
IMITATION = """
exec -a qemu-system-x86_64 /bin/bash -c 'read _; :' "$@"
"""
AT_HOME = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
ELSEWHERE = [
    "unshare",
    "--mount",
    "bash",
    "-c",
    'mount --bind /usr "$0" && exec chroot --userspec=65534:65534 "$0" "$@"',
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root's QEMU runs as another user, anybody else's does not")


def look_without_ptrace(pid: int, runtime: Path) -> tuple[bool, list[str], list[str], list[str] | None]:
    """Look as root without CAP_SYS_PTRACE; return whether the process's root could be followed, and what was seen."""
    command = [*WITHOUT_PTRACE, sys.executable, "-c", LOOK, str(pid), str(runtime)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    may_look, names, faults, writable = json.loads(done.stdout)
    return may_look, names, faults, writable


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


@needs_root
async def test_vm_is_found_by_root_that_may_not_look_into_it(template: Template) -> None:
    """As in a container: the VM is listed, its layers are read; what it has open is unknown, and that is no error."""
    async with template.lease() as vm:
        seen = await run_sync(look_without_ptrace, vm.pid, HostConfig().runtime_dir)
    may_look, names, faults, writable = seen
    assert not may_look, "the control: this process lacks what following a link takes"
    assert vm.name in names
    assert faults == []
    assert writable is None


@needs_root
@pytest.mark.parametrize("is_ours", [True, False])
def test_machine_of_another_root_directory_is_not_ours(tmp_path: Path, is_ours: bool) -> None:
    """Its paths are like ours but lead elsewhere; its mounts say so where its root is closed to us."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this host lets root make no mount namespace")
    runtime, name = Path("/runtime"), "sbx-0123abcd-1"
    words = [f"guest={name},", f"{runtime}/0123abcd/sock"]
    command = [*(AT_HOME if is_ours else [*ELSEWHERE, str(tmp_path)]), "/bin/bash", "-c", IMITATION, "bash", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        arguments = Path(f"/proc/{process.pid}/cmdline")
        while process.poll() is None and not arguments.read_bytes().startswith(b"qemu-system"):
            pass  # until then it is a shell that prepares it
        expected = [name] if is_ours else []
        assert process.poll() is None
        assert [machine.name for machine in find_machines(runtime)] == expected
        may_look, names, _, _ = look_without_ptrace(process.pid, runtime)
        process.kill()
    assert not may_look, "the control: this process lacks what following a link takes"
    assert names == expected


@needs_root
def test_doctor_looks_on_where_it_may_not_look_at_files(template: Template) -> None:
    """Root without CAP_SYS_PTRACE hears what could not be looked at, and everything else."""
    done = subprocess.run(
        [*WITHOUT_PTRACE, *SANDBOX, "doctor", "--json"], capture_output=True, text=True, check=False, timeout=60
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0
    assert checks.keys() >= {"devices", "cgroups", "priority"}
    assert "could not be looked at" in checks["confinement"]["found"]


def test_husks_of_run_directories_go_and_nothing_else_does(tmp_path: Path) -> None:
    """What libvirt wrote after the end is removed; a stranger's directory of such a name is not touched."""
    husk, other = tmp_path / "0123abcd", tmp_path / "89abcdef"
    for path, name in ((husk, "sbx-0123abcd-7.xml.new"), (other, "mine.txt")):
        (path / "l/run/qemu").mkdir(parents=True)
        (path / "l/run/qemu" / name).write_text("")
    assert reap(tmp_path) == 0
    assert not husk.exists()
    assert (other / "l/run/qemu/mine.txt").exists()
