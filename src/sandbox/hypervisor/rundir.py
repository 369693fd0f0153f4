"""One directory for each living process of ours; a lock in it tells whether its owner lives.

Whatever a killed process left (QEMU processes, sockets, libvirt's state) bears the directory's path on its command
line or lies in it, so the next process that starts finds and ends exactly that.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sandbox.errors import HypervisorError
from sandbox.hypervisor.cgroup import remove_group
from sandbox.hypervisor.process import Process
from sandbox.log import log
from sandbox.paths import make_directory

_LOCK = "sandbox.lock"
GROUPS_FILE = "cgroups"
"""Lists the control groups that the directory's process divides among its VMs."""
_NAMES = "[0-9a-f]" * 8
"""Only directories of such names that hold such a lock are ever removed, wherever the runtime directory lies."""
_DEATH_SECONDS = 5.0
_CLEAR_ATTEMPTS = 50
_CLEAR_SECONDS = 0.01
_GROUP_SECONDS = 0.5


class RunDirectory:
    """A run directory that this process holds."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, runtime: Path) -> RunDirectory:
        """Make and lock a fresh directory. QEMU may run as another user, who may pass through but not list it."""
        try:
            make_directory(runtime)
            if runtime.stat().st_uid != os.geteuid():
                raise HypervisorError(f"{runtime} belongs to another user; set SANDBOX_RUNTIME_DIR to one of yours")
            name = secrets.token_hex(4)
            unborn, path = runtime / f".{name}", runtime / name
            make_directory(unborn, 0o711)
        except OSError as error:
            raise HypervisorError(
                f"cannot make a run directory in {runtime}: {error.strerror}; set SANDBOX_RUNTIME_DIR to a writable one"
            ) from error
        lock = os.open(unborn / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, f"{os.getpid()}\n".encode())  # for people: that the lock is held is what counts
        unborn.rename(path)  # only a locked directory becomes visible to another process's `reap`
        return cls(path, lock)

    def remove(self) -> None:
        """End what still runs in here and delete the directory. May be called twice."""
        if self._lock < 0:
            return
        _clear(self.path)
        os.close(self._lock)
        self._lock = -1


def reap(runtime: Path) -> int:
    """End and remove what dead processes left behind; return how many run directories were cleared."""
    cleared = 0
    _remove_husks(runtime)
    for path in _ownerless(runtime):
        _clear(path)
        cleared += 1
    return cleared


def _remove_husks(runtime: Path) -> None:
    """Remove what a thread of libvirt makes again when ours is gone: its record of a domain, and directories.

    Nothing but that goes: a directory of such a name that holds anything else was never ours.
    """
    for path in runtime.glob(_NAMES):
        if not (path / _LOCK).exists():
            for record in path.glob(f"l/run/qemu/sbx-{path.name}-*.xml*"):
                record.unlink(missing_ok=True)
            for below in ("l/run/qemu", "l/run", "l", "."):
                with suppress(OSError):
                    (path / below).rmdir() if below != "." else path.rmdir()


def stale(runtime: Path) -> int:
    """Return how many run directories have no living owner; change nothing."""
    return sum(1 for _ in _ownerless(runtime))


def run_directories(runtime: Path) -> list[Path]:
    """Return every run directory, whoever owns it."""
    return sorted(path for path in runtime.glob(_NAMES) if (path / _LOCK).exists())


def has_owner(path: Path) -> bool:
    """Return whether the process that made this run directory lives: it holds the lock as long as it does."""
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # it is being removed by its owner right now
        return True
    except PermissionError:  # another user's: the lock may be looked at only by who may open it
        return owner_pid(path) is None or Path(f"/proc/{owner_pid(path)}").exists()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def owner_pid(path: Path) -> int | None:
    """Return the process id that is written in a run directory's lock; None if it cannot be read."""
    try:
        return int((path / _LOCK).read_text())
    except (OSError, ValueError):
        return None


def group_name(path: Path) -> str:
    """Return what the control groups of a run directory are called; other runtime directories have other names.

    A container may have the same paths and see the same groups: the directory's own number tells the two apart.
    """
    status = path.parent.stat()
    return f"{path.name}-{zlib.crc32(f'{status.st_dev}:{status.st_ino}'.encode()):08x}"


def _ownerless(runtime: Path) -> Iterator[Path]:
    """Yield the run directories whose lock is free, holding it meanwhile: their owner is dead, whoever has its pid."""
    for path in runtime.glob(_NAMES):
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # not a run directory, another user's, or being removed right now
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            yield path
        finally:
            os.close(lock)


def _remove_groups(path: Path) -> None:
    """Remove the control groups of a run directory whose VMs are dead. Only empty directories of its name go."""
    with suppress(FileNotFoundError):
        for line in (path / GROUPS_FILE).read_text().splitlines():
            parent = Path(line)
            if parent.name != group_name(path) or not (parent / "cgroup.procs").exists():
                continue
            children = [child for child in parent.iterdir() if child.is_dir()]
            if not min(remove_group(group, _GROUP_SECONDS) for group in (*children, parent)):
                log.warning("control_group_not_removed", group=line)


def _clear(path: Path) -> None:
    for process in Process.find(f"{path}/"):
        log.warning("leftover_vm_killed", pid=process.pid, run_directory=str(path))
        process.kill()
        if not process.wait_dead_blocking(_DEATH_SECONDS):
            raise HypervisorError(f"QEMU process {process.pid} of {path} does not die; end it by hand and try again")
        process.close()
    _remove_groups(path)
    for attempt in range(_CLEAR_ATTEMPTS):  # libvirt's threads may still be writing about a domain that has just ended
        entries = [entry for entry in path.iterdir() if entry.name != _LOCK]
        if not entries:
            # The lock goes last: a directory that could not be emptied keeps it, and the next process tries again.
            (path / _LOCK).unlink(missing_ok=True)
            try:
                path.rmdir()
            except OSError:  # a thread of libvirt was quicker
                (path / _LOCK).touch()
                continue
            return
        if attempt:
            time.sleep(_CLEAR_SECONDS)
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
    log.warning("run_directory_not_cleared", path=str(path))
