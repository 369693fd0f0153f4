"""Other users of the host can neither stop our starts nor stand in our place; each in a process of another user."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.config import HostConfig
from sandbox.errors import HostResources, HypervisorError
from sandbox.hypervisor import admission
from sandbox.hypervisor.admission import Admission
from sandbox.hypervisor.ledger import Ledger

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
STRANGER = f"""
import fcntl, os, sys, time
from pathlib import Path
from sandbox.hypervisor.ledger import Ledger

os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
shared = Path(sys.argv[1])
held = []
def hold():
    for path in (shared, *sorted(shared.rglob("*"))):
        for lock in (lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
                     lambda fd: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)):
            try:
                descriptor = os.open(path, os.O_RDONLY)
                held.append(descriptor)
                lock(descriptor)
                print("locked", path.name, file=sys.stderr)
            except OSError:
                pass
def promise():
    ledger = Ledger(shared, "11111111")
    held.append(ledger)
    ledger.promise("vm", 10**15, 10**16)
def fill():
    own = shared / "sandbox-{NOBODY}"
    own.mkdir(exist_ok=True)
    for number in range(3000):
        (own / f"{{number:08x}}").write_text("1000000")
        (shared / f"sandbox-{{number + 1000000}}").mkdir()
globals()[sys.argv[2]]()
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory of root's in which every user may make files, as `/run/lock` is."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o1777)
        yield path


@needs_root
@pytest.mark.parametrize("act", ["hold", "promise", "fill"])
def test_another_user_cannot_stop_our_starts(shared: Path, act: str) -> None:
    """Who locks all that can be opened, promises the world or fills the directory takes half the budget at most."""
    ledger = Ledger(shared, "00000000")
    command = [sys.executable, "-c", STRANGER, str(shared), act]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "done\n"
        started = time.monotonic()
        ledger.promise("vm", 500, 1000)
        second = Ledger(shared, "22222222")
        with pytest.raises(HostResources, match="500 MiB by others" if act != "promise" else "1000 MiB by others"):
            second.promise("vm", 501, 1000)
        assert time.monotonic() - started < 3
        second.close()
        ledger.close()
        stranger.communicate("\n")


@needs_root
@pytest.mark.parametrize("what", ["theirs", "link", "open"])
def test_a_place_that_is_not_ours_is_not_used(shared: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Another user stands in our place: a named ledger is refused, and the usual one counts our processes only."""
    own = shared / f"sandbox-{os.geteuid()}"
    if what == "link":
        own.symlink_to(tempfile.gettempdir())
    else:
        own.mkdir()
        os.chown(own, NOBODY if what == "theirs" else 0, -1)
        own.chmod(0o777)
    with pytest.raises(HypervisorError, match="cannot be used for admission"):
        Ledger(shared, "00000000")
    monkeypatch.setattr(admission, "SHARED", shared)
    with tempfile.TemporaryDirectory() as runtime:
        ours = Admission(HostConfig(runtime_dir=Path(runtime), admission_dir=None), "00000000")
        assert ours.refused is not None
        assert ours.ledger.directory == Path(runtime) / ".admission"
        ours.ledger.promise("vm", 1, 10)
        ours.close()


@needs_root
def test_a_shared_directory_of_another_users_is_not_used(shared: Path, tmp_path: Path) -> None:
    """Its owner could put another one in the place of ours; so could all without a sticky bit; a link may move."""
    os.chown(shared, NOBODY, -1)
    with pytest.raises(HypervisorError, match="belongs to user nobody"):
        Ledger(shared, "00000000")
    os.chown(shared, 0, -1)
    shared.chmod(0o777)
    with pytest.raises(HypervisorError, match="could replace ours"):
        Ledger(shared, "00000000")
    shared.chmod(0o1777)
    (tmp_path / "link").symlink_to(shared)
    with pytest.raises(HypervisorError, match="a link or a file"):
        Ledger(tmp_path / "link", "00000000")
    Ledger(shared, "00000000").close()
