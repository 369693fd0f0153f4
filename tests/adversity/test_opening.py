"""Opening the hypervisor fails: the cause is named, and the same process can try again. Each is a new process."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.hypervisor.inventory import leaks
from sandbox.hypervisor.rundir import reap

pytestmark = pytest.mark.usefixtures("template")
END = "\N{END OF TRANSMISSION}"
PRELUDE = """
import asyncio, os, sys
from pathlib import Path
from sandbox.config import HostConfig
from sandbox.errors import SandboxError
from sandbox.hypervisor.host import Hypervisor
from sandbox.template.template import Template

END = "\N{END OF TRANSMISSION}"

def attempt(**settings):
    try:
        Hypervisor.connect_blocking(HostConfig(**settings))
        print("opened", end=END)
    except SandboxError as error:
        print(error.code, error, end=END)

async def use(**settings):
    template = await Template.ensure(host_config=HostConfig(**settings))
    async with template.lease() as vm:
        print((await vm.run("print(6 * 7)")).text.strip(), end=END)
"""
EMULATOR = """#!/bin/sh
case $1 in
--version) echo "QEMU emulator version 10.0.2" ;;
-machine) [ "$2" = help ] && echo "pc-q35-10.0 (alias of pc-q35-10.0)" ;;
*) echo broken >&2; exit 1 ;;
esac
"""


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime directory with a short path, for QEMU's user to pass through, in which nothing is left in the end."""
    with tempfile.TemporaryDirectory(prefix="sbx-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        reap(path)  # a thread of libvirt may make its directories again: the next start removes them
        assert leaks(path) == []
        assert [str(left) for left in path.rglob("*") if not left.is_relative_to(path / ".admission")] == []


def _python(code: str, runtime: Path, *arguments: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *arguments],
        env={**os.environ, "SANDBOX_RUNTIME_DIR": str(runtime), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(END)[:-1]


def test_what_fails_before_libvirt_starts_can_be_mended_and_tried_again(runtime: Path) -> None:
    """A file where the ledger should be is an error; with another place for it, the same process has its VMs."""
    code = """
(Path(sys.argv[1]) / "file").touch()
attempt(admission_dir=Path(sys.argv[1]) / "file")
asyncio.run(use())
"""
    said = _python(code, runtime, str(runtime))
    (runtime / "file").unlink()
    assert "HYPERVISOR" in said[0]
    assert said[1:] == ["42"]


def test_what_fails_after_libvirt_has_started_can_be_tried_again(runtime: Path, tmp_path: Path) -> None:
    """A QEMU that does not tell what it can do is replaced by one that does: libvirt goes on in its first directory."""
    (tmp_path / "qemu-system-x86_64").write_text(EMULATOR)
    (tmp_path / "qemu-system-x86_64").chmod(0o755)
    code = """
whole, os.environ["PATH"] = os.environ["PATH"], sys.argv[1] + ":" + os.environ["PATH"]
attempt(data_dir=Path(sys.argv[1]) / "data")
os.environ["PATH"] = whole
attempt(runtime_dir=Path("/tmp/sbx-elsewhere"))
asyncio.run(use())
"""
    said = _python(code, runtime, str(tmp_path))
    assert "HYPERVISOR libvirt cannot be used" in said[0]
    assert "CONFIG" in said[1]
    assert "cannot move to" in said[1]
    assert said[2:] == ["42"]


def test_a_path_that_is_too_long_says_how_long_it_may_be(runtime: Path) -> None:
    """Found when the hypervisor is opened, before anything is started; one byte less is taken."""
    code = """
from sandbox.hypervisor.rundir import RunDirectory, check_length
attempt(runtime_dir=Path(sys.argv[1]) / ("x" * 53))
most = 107 - len("/01234567/l/lib/qemu/domain-123456-sbx-01234567-1234567/monitor.sock")
check_length(Path("/" + "x" * (most - 1)), is_embedded=True)
asyncio.run(use(runtime_dir=Path(sys.argv[1]) / ("x" * (most - 1 - len(sys.argv[1])))))
"""
    said = _python(code, runtime, str(runtime))
    shutil.rmtree(next(runtime.glob("x*")))
    assert re.match(r"CONFIG .* has \d+ bytes; at most 39 leave room", said[0])
    assert said[1:] == ["42"]


def test_a_run_directory_that_is_gone_is_named(runtime: Path) -> None:
    """Logging out removes a user's runtime directory: the error says that, and no word of descriptors."""
    code = """
import shutil
async def lose(**settings):
    template = await Template.ensure()
    shutil.rmtree(template.host.rundir.path)
    try:
        async with template.lease():
            print("leased", end=END)
    except SandboxError as error:
        print(error.code, error, end=END)

asyncio.run(lose())
"""
    (said,) = _python(code, runtime)
    assert re.match(r"HYPERVISOR the run directory .* was removed while this process lives", said)


def test_another_users_data_directory_is_named(runtime: Path) -> None:
    """Who may read another's images but not write beside them hears whose they are, and what to set."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    code = """
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
attempt(runtime_dir=Path(sys.argv[1]) / "r")
"""
    runtime.chmod(0o1777)
    (said,) = _python(code, runtime, str(runtime))
    runtime.chmod(0o755)
    assert re.match(
        r"HYPERVISOR what is known of this host cannot be kept: .*Permission denied; .* belongs to user root: "
        "set SANDBOX_DATA_DIR",
        said,
    )


def test_one_connection_serves_all_who_agree_on_it(runtime: Path) -> None:
    """Each user's own reserve and requirement count; what all share must be equal, and what differs is named."""
    code = """
attempt()
attempt(memory_overcommit=2.0, nice=3)
attempt(memory_reserve_mib=300)
attempt(require_isolation="kvm")
host = Hypervisor.connect_blocking(HostConfig())
try:
    host.admission.admit("vm", 1, 10_000_000)
except SandboxError as error:
    print(error.code, error, end=END)
"""
    said = _python(code, runtime, SANDBOX_ACCELERATOR="tcg")
    assert (said[0], said[2]) == ("opened", "opened")
    assert re.match("CONFIG .* with another memory_overcommit, nice;", said[1])
    assert re.match("CONFIG isolation by kvm is required", said[3])
    assert re.match("HOST_RESOURCES .* 10000000 MiB stay in reserve", said[4])


def test_descriptors_suffice_for_many_vms(runtime: Path) -> None:
    """The soft limit of most systems ends near 185 VMs; it is raised as far as the hard one allows."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 5000))
attempt()
print(resource.getrlimit(resource.RLIMIT_NOFILE), end=END)
"""
    assert _python(code, runtime) == ["opened", "(5000, 5000)"]


def test_no_vm_is_registered_with_the_system(runtime: Path, tmp_path: Path) -> None:
    """libvirt does not look for systemd-machined by the system bus, which would take VMs out of our service's group."""
    if os.geteuid() != 0:
        pytest.skip("without root libvirt registers nothing")
    bus = tmp_path / "bus"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bus))
        listener.listen()
        listener.setblocking(False)
        code = "asyncio.run(use())\nprint(os.environ['DBUS_SYSTEM_BUS_ADDRESS'], end=END)\n"
        said = _python(code, runtime, DBUS_SYSTEM_BUS_ADDRESS=f"unix:path={bus}")
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert said == ["42", f"unix:path={bus}"]


def test_orphans_of_the_application_go_to_init(runtime: Path) -> None:
    """Only while a VM starts are they ours: at other times nothing that we would not collect becomes our child."""
    code = """
import ctypes
def is_subreaper():
    value = ctypes.c_int()
    ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0)
    return value.value

async def look():
    template = await Template.ensure()
    async with template.lease() as vm:
        parent = Path(f"/proc/{vm.pid}/stat").read_text().rpartition(")")[2].split()[1]
        print(is_subreaper(), int(parent) == os.getpid(), end=END)

asyncio.run(look())
"""
    assert _python(code, runtime) == ["0 True"]


def test_libvirt_learns_of_another_qemu_before_it_starts_a_vm(runtime: Path, tmp_path: Path) -> None:
    """Its probe takes seconds, and half a minute where its processes become ours, as they would during a start."""
    for part in (tmp_path, *tmp_path.parents[:2]):  # QEMU's own user must get there
        part.chmod(0o755)
    other = tmp_path / "qemu-system-x86_64"
    other.write_text(f'#!/bin/sh\nexec {shutil.which("qemu-system-x86_64")} "$@"\n')
    other.chmod(0o755)
    code = """
import hashlib
def is_known(host):
    name = hashlib.sha256(host.platform.emulator.encode()).hexdigest()
    return list((host.rundir.path / "l/cache").rglob(name + ".xml")) != []

host = Hypervisor.connect_blocking(HostConfig())
before, known = host.platform.emulator, [is_known(host)]
os.environ["PATH"] = sys.argv[1] + ":" + os.environ["PATH"]
host.renew()
print(host.platform.emulator != before, known + [is_known(host)], end=END)
Path(host.platform.emulator).unlink()
version = host.connection._learned
host.renew()
print(version != host.connection._learned, end=END)
asyncio.run(use())
"""
    assert _python(code, runtime, str(tmp_path)) == ["True [True, True]", "True", "42"]


def test_a_driver_that_cannot_start_at_all_says_so_twice(runtime: Path) -> None:
    """What libvirt itself cannot repeat names the first cause, and that another process is needed."""
    code = """
from sandbox.hypervisor import connection
connection._EMBED_CONFIG += "nonsense = [\\n"
attempt()
attempt()
"""
    said = " ".join(_python(code, runtime))
    assert said.count("configuration file syntax error") == 2
    assert "start another process" in said
