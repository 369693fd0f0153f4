"""Run directories are cleared only where nobody else can have put them, and no other file goes with them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.cli.inventory import run_reap
from sandbox.config import HostConfig
from sandbox.errors import HypervisorError
from sandbox.hypervisor import groups, host, rundir
from sandbox.hypervisor.groups import reap_left_over
from sandbox.hypervisor.host import Hypervisor
from sandbox.hypervisor.process import Process
from sandbox.hypervisor.rundir import RunDirectory, reap, stale

LOCK = "sandbox.lock"


def _left_by_the_dead(runtime: Path, name: str = "deadbeef") -> Path:
    path = runtime / name
    (path / "l").mkdir(parents=True)
    (path / LOCK).touch()
    (path / "file").touch()
    return path


def test_what_dead_processes_left_is_cleared(tmp_path: Path) -> None:
    """The control of what follows: such directories do go."""
    path = _left_by_the_dead(tmp_path)
    assert stale(tmp_path) == 1
    assert reap(tmp_path) == 1
    assert not path.exists()
    assert reap(tmp_path / "missing") == 0


def test_another_users_directory_is_not_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sandbox reap` trusts a runtime directory no more than a start does."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    path = _left_by_the_dead(tmp_path)
    os.chown(tmp_path, 65534, 65534)
    monkeypatch.setenv("SANDBOX_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(HypervisorError, match="belongs to another user"):
        run_reap()
    assert (path / "file").exists()


def test_another_users_directory_in_ours_is_not_cleared(tmp_path: Path) -> None:
    """What somebody else has put there is none of our run directories, whatever its name."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    path = _left_by_the_dead(tmp_path)
    os.chown(path, 65534, 65534)
    assert reap(tmp_path) == 0
    assert (path / "file").exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Neither is anything made in it, nor anything removed."""
    path = _left_by_the_dead(tmp_path)
    tmp_path.chmod(mode)
    for act in (reap, RunDirectory.create):
        with pytest.raises(HypervisorError, match="others may write"):
            act(tmp_path)
    assert (path / "file").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["deadbeef"]


def test_a_link_to_a_directory_is_refused(tmp_path: Path) -> None:
    """Who made the link could have it lead elsewhere the next moment."""
    path = _left_by_the_dead(tmp_path / "true")
    (tmp_path / "link").symlink_to(tmp_path / "true")
    for act in (reap, RunDirectory.create):
        with pytest.raises(HypervisorError, match="is a link"):
            act(tmp_path / "link")
    assert (path / "file").exists()


def test_no_link_is_followed_to_what_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is there from the first, nor one that takes the directory's place while VMs are looked for."""
    home = tmp_path / "home"
    home.mkdir()
    for name in (LOCK, "precious"):
        (home / name).touch()
    runtime = tmp_path / "runtime"
    path = _left_by_the_dead(runtime)
    (runtime / "0123abcd").symlink_to(home)

    def swap(_mark: str) -> list[Process]:
        path.rename(runtime / "away")
        path.symlink_to(home)
        return []

    monkeypatch.setattr(Process, "find", swap)
    reap(runtime)
    assert path.is_symlink(), "the control: it was swapped"
    assert sorted(entry.name for entry in home.iterdir()) == ["precious", LOCK]


def test_an_owner_that_removes_its_directory_meanwhile_is_left_in_peace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening of a lock and its taking, its owner may have removed it, with the directory."""
    path = _left_by_the_dead(tmp_path)
    flock = fcntl.flock

    def late(lock: int, operation: int) -> None:
        shutil.rmtree(path)
        flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert reap(tmp_path) == 0


def test_groups_that_another_process_removes_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start at once, after a crash, find the same groups left over."""
    monkeypatch.setattr(groups, "left_over", lambda *_: [tmp_path / "gone"])
    assert reap_left_over(tmp_path, []) == 0


def test_a_process_that_does_not_die_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run directory stays for the next one that clears; the others are cleared."""
    paths = [_left_by_the_dead(tmp_path, name) for name in ("0123abcd", "4567abcd", "89abcdef")]
    monkeypatch.setattr(Process, "kill", lambda _: True)
    monkeypatch.setattr(rundir, "_DEATH_SECONDS", 0.0)
    with _qemu_of(paths[1]) as process:
        assert reap(tmp_path) == 2
        assert [path.exists() for path in paths] == [False, True, False]
        process.kill()
    assert reap(tmp_path) == 1


def test_a_start_that_fails_gives_its_run_directory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that could not open the hypervisor, and lives on, holds nothing of it."""

    def fail(_runtime: Path) -> int:
        raise HypervisorError("not this time")

    monkeypatch.setattr(host, "reap", fail)
    with tempfile.TemporaryDirectory(prefix="sbx-", dir="/tmp") as name:  # sockets need a short path
        config = HostConfig(runtime_dir=Path(name))
        before = _descriptors()
        with pytest.raises(HypervisorError, match="not this time"):
            Hypervisor(config)
        assert list(Path(name).iterdir()) == []
    assert _descriptors() == before


def _descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@contextmanager
def _qemu_of(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that looks like a QEMU of this run directory."""
    command = ["qemu-system-none", "-c", "import signal; signal.pause()", f"{path}/"]
    with subprocess.Popen(command, executable=sys.executable) as process:
        try:
            yield process
        finally:
            process.kill()
