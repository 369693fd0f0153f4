"""What is read from /proc, where any user of the host can have bytes told that are no text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.hypervisor import inventory
from sandbox.hypervisor.cgroup_place import hierarchies
from sandbox.hypervisor.inventory import find_machines
from sandbox.hypervisor.process import command_line_arguments, reap_zombie, stopped
from sandbox.observe.anomaly import _Qemu
from sandbox.proc import mounts

NAMELESS = r"""
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"a) Z\xff\xfe\x85", 0, 0, 0)
print(flush=True)
sys.stdin.read()
"""
ASK = """
import sys, tempfile
from pathlib import Path
from sandbox.paths import Paths
from sandbox.hypervisor.memory_file import allocate
from sandbox.image.command import _root_is_a_mount
from sandbox.image.removal import mounts_below
with tempfile.TemporaryFile() as file:
    allocate(file.fileno(), 4096)
print(len(mounts_below(Path(sys.argv[1]))), _root_is_a_mount())
"""
ODD = b"/odd\xe9\x0c\x85\xe2\x80\xa8\\040name"
MOUNTED = (
    b"21 1 0:20 / / rw - ext4 /dev/vda rw\n"
    b"22 21 0:21 / " + ODD + b" rw shared:1 - tmpfs odd\xe9 rw\n"
    b"23 21 0:22 /x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.fixture
def nameless() -> Iterator[int]:
    """A process that looks like a QEMU of ours, but has a name and an argument that are no text."""
    arguments = [
        b"qemu-system-x86_64",
        b"-c",
        NAMELESS.encode(),
        b"guest=sbx-0123abcd-1,",
        b"/runtime/0123abcd/sock",
        b"\xff",
    ]
    with subprocess.Popen(
        arguments, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert b"\xff" in Path(f"/proc/{process.pid}/stat").read_bytes(), "the control"
        yield process.pid
        process.kill()


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A directory like that of a process, which has mounted something on a name that is no text."""
    (tmp_path / "mountinfo").write_bytes(MOUNTED)
    (tmp_path / "cgroup").write_bytes(b"2:memory:/odd\xe9\n")
    return tmp_path


def test_no_process_name_is_in_the_way(nameless: int) -> None:
    """Such a process is looked at as any other: listed, stopped or not, sampled, and told from a dead QEMU."""
    assert [machine.pid for machine in find_machines(Path("/runtime"))] == [nameless]
    assert stopped([nameless]) == set()
    reap_zombie(nameless)
    assert os.fsencode(command_line_arguments(nameless)[-1]) == b"\xff"
    qemu = _Qemu.open(nameless)
    assert qemu is not None
    assert qemu.cpu_seconds() is not None
    qemu.close()


def test_mount_points_are_read_whatever_bytes_they_have(mounted: Path) -> None:
    """A name in an old encoding, or with a character that ends lines elsewhere, stays one name of one mount."""
    found = mounts(mounted)
    assert [mount.kind for mount in found] == ["ext4", "tmpfs", "cgroup"]
    assert [mount.device for mount in found] == [os.makedev(0, number) for number in (20, 21, 22)]
    assert os.fsencode(found[1].point) == ODD.replace(b"\\040", b" ")
    assert found[2].root == "/x"


def test_groups_are_found_beside_such_a_mount(mounted: Path) -> None:
    """Neither what else is mounted nor the group's own name keeps the hierarchies from being found."""
    found = hierarchies(os.path.relpath(mounted, "/proc"))
    assert os.fsencode(found["memory"].own) == b"/sys/fs/cgroup/memory"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_library_is_imported_beside_such_a_mount(tmp_path: Path) -> None:
    """Where a stick or a share is mounted on a name in an old encoding, all that asks for mounts still answers."""
    if subprocess.run(["unshare", "--mount", "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this host lets root make no mount namespace")
    odd = tmp_path / os.fsdecode(b"odd\xe9\x0cname")
    odd.mkdir()
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs odd "$0" && exec "$@"',
        str(odd),
        sys.executable,
        "-c",
        ASK,
    ]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "True"]), done.stderr


def test_other_processes_are_told_by_their_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's mounts are read to see that a process is no QEMU: it would take two tables for each of thousands."""
    asked: list[Path] = []
    monkeypatch.setattr(inventory, "_has_our_root", asked.append)
    assert find_machines(Path("/nowhere")) == []
    assert asked == []
