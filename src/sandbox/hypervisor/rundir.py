"""One directory for each living process of ours; a lock in it tells whether its owner lives.

Whatever a killed process left (QEMU processes, sockets, libvirt's state) bears the directory's path on its command
line or lies in it, so the next process that starts finds and ends exactly that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sandbox.errors import ConfigError, HypervisorError
from sandbox.hypervisor.cgroup import remove_group
from sandbox.hypervisor.process import Process
from sandbox.inherited import Descriptor, check_not_forked
from sandbox.log import log
from sandbox.paths import make_directory
from sandbox.stored import read_stored, refused

LOCK_FILE = "sandbox.lock"
GROUPS_FILE = "cgroups"
"""Lists the control groups that the directory's process divides among its VMs."""
_NAMES = "[0-9a-f]" * 8
"""Only directories of such names that hold such a lock are ever removed, wherever the runtime directory lies."""
_DEATH_SECONDS = 5.0
_CLEAR_ATTEMPTS = 50
_CLEAR_SECONDS = 0.01
_GROUP_SECONDS = 0.5
_SOCKET_PATH_BYTES = 107
"""The kernel's bound."""
_LONGEST = {
    True: "/01234567/l/lib/qemu/domain-123456-sbx-01234567-1234567/monitor.sock",
    False: "/01234567/sbx-01234567-123456.sock",
}
"""The longest name of a socket below the runtime directory: with libvirt inside this process its own, else ours."""
_LIST_BYTES = 64 * 1024
_PIDS = 2**31
_LOCKING = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class RunDirectory:
    """A run directory that this process holds."""

    def __init__(self, path: Path, lock: Descriptor) -> None:
        self._path = path
        self._lock = lock
        self._owner = os.getpid()

    def __str__(self) -> str:
        return str(self._path)

    @property
    def path(self) -> Path:
        """Where it is. Raises in a child that was forked: names made from it would be those of its parent's VMs."""
        check_not_forked(self._owner)
        return self._path

    @classmethod
    def create(cls, runtime: Path) -> RunDirectory:
        """Make and lock a fresh directory. QEMU may run as another user, who may pass through but not list it."""
        try:
            make_directory(runtime)
            _check_trusted(runtime)
            name = secrets.token_hex(4)
            unborn, path = runtime / f".{name}", runtime / name
            make_directory(unborn, 0o711)
            lock = Descriptor(os.open(unborn / LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(lock.fileno(), f"{os.getpid()}\n".encode())  # for people: that the lock is held is what counts
            unborn.rename(path)  # only a locked directory becomes visible to another process's `reap`
        except OSError as error:
            said = refused(error, runtime, "SANDBOX_RUNTIME_DIR")
            raise HypervisorError(f"cannot make a run directory: {said}") from error
        return cls(path, lock)

    def remove(self) -> None:
        """End what still runs in here and delete the directory.

        May be called twice. In a child that was forked it does nothing: all of that is its parent's.
        """
        if not self._lock.is_open:
            return
        _end_machines(self._path)
        with suppress(FileNotFoundError), _opened(self._path) as directory:
            _remove_all(self._path, directory)
        self._lock.close()


def reap(runtime: Path) -> int:
    """End and remove what dead processes left behind; return how many run directories were cleared.

    One that cannot be cleared is left to the next process. Raises `HypervisorError` if others can write in `runtime`.
    """
    try:
        _check_trusted(runtime)
    except FileNotFoundError:
        return 0
    cleared = 0
    _remove_husks(runtime)
    for path, directory in _ownerless(runtime):
        try:
            _end_machines(path)
            _remove_all(path, directory)
        except (HypervisorError, OSError) as error:
            log.warning("run_directory_not_cleared", path=str(path), reason=str(error))
        else:
            cleared += 1
    return cleared


def check_length(runtime: Path, *, is_embedded: bool) -> None:
    """Raise `ConfigError` if a socket's path in a run directory in here would be longer than the kernel takes."""
    most, size = _SOCKET_PATH_BYTES - len(_LONGEST[is_embedded]), len(os.fsencode(runtime))
    if size > most:
        raise ConfigError(
            f"the runtime directory's path {runtime} has {size} bytes; at most {most} leave room for sockets in it, "
            f"whose paths may have {_SOCKET_PATH_BYTES}; set SANDBOX_RUNTIME_DIR to a shorter one"
        )


def _check_trusted(runtime: Path) -> None:
    """Raise `HypervisorError` unless all that lies in this directory was put there by this user."""
    status = runtime.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise HypervisorError(f"{runtime} is a link or a file; set SANDBOX_RUNTIME_DIR to a directory itself")
    if status.st_uid != os.geteuid():
        raise HypervisorError(f"{runtime} belongs to another user; set SANDBOX_RUNTIME_DIR to one of yours")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise HypervisorError(
            f"others may write in {runtime}; set SANDBOX_RUNTIME_DIR to a directory for this alone; if it is one, "
            f"run `chmod go-w {runtime}`"
        )


def _remove_husks(runtime: Path) -> None:
    """Remove what a thread of libvirt makes again when ours is gone: its record of a domain, and directories.

    Nothing but that goes: a directory of such a name that holds anything else was never ours.
    """
    for path in runtime.glob(_NAMES):
        if not path.is_symlink() and not (path / LOCK_FILE).exists():
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
    return sorted(path for path in runtime.glob(_NAMES) if _has_lock(path))


def _has_lock(path: Path) -> bool:
    """Return whether there is a lock file in this directory; whatever else bears its name is none of ours."""
    try:
        return stat.S_ISREG((path / LOCK_FILE).lstat().st_mode)
    except OSError:
        return False


def has_owner(path: Path) -> bool:
    """Return whether the process that made this run directory lives: it holds the lock as long as it does."""
    try:
        lock = os.open(path / LOCK_FILE, _LOCKING)
    except PermissionError:  # another user's: the lock may be looked at only by who may open it
        return owner_pid(path) is None or Path(f"/proc/{owner_pid(path)}").exists()
    except OSError:  # it is being removed by its owner right now, or none of ours
        return True
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
        pid = int(read_stored(path / LOCK_FILE))
    except (OSError, ValueError):
        return None
    return pid if 0 < pid < _PIDS else None


def group_name(path: Path) -> str:
    """Return what the control groups of a run directory are called; other runtime directories have other names.

    A container may have the same paths and see the same groups: the directory's own number tells the two apart.
    """
    status = path.parent.stat()
    return f"{path.name}-{zlib.crc32(f'{status.st_dev}:{status.st_ino}'.encode()):08x}"


def _ownerless(runtime: Path) -> Iterator[tuple[Path, int]]:
    """Yield the run directories whose lock is free, each opened, holding the lock meanwhile.

    Their owner is dead, whoever has its pid.
    """
    for path in runtime.glob(_NAMES):
        with ExitStack() as stack:
            try:
                directory = stack.enter_context(_opened(path))
                lock = Descriptor(os.open(LOCK_FILE, _LOCKING, dir_fd=directory))
                stack.callback(lock.close)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                there = os.stat(LOCK_FILE, dir_fd=directory, follow_symlinks=False)
            except OSError:  # its owner lives or has just removed it, it is another user's, or no run directory
                continue
            if stat.S_ISREG(there.st_mode) and os.path.samestat(os.fstat(lock.fileno()), there):
                yield path, directory


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a directory of ours; raise `OSError` for whatever else has come to bear its name.

    Whoever works by the descriptor stays in this directory, whatever becomes of the name.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(directory).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "another user's", str(path))
        yield directory
    finally:
        os.close(directory)


def _remove_groups(path: Path, directory: int) -> None:
    """Remove the control groups of a run directory whose VMs are dead. Only empty directories of its name go."""
    try:
        listed = os.open(GROUPS_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        with os.fdopen(listed, "rb") as file:
            lines = os.fsdecode(file.read(_LIST_BYTES)).split("\n")
    except FileNotFoundError:  # none were made
        return
    except OSError as error:  # `reap_left_over` looks for them itself
        log.warning("control_groups_not_listed", path=str(path), reason=str(error))
        return
    for line in lines:
        parent = Path(line)
        if parent.name != group_name(path) or not (parent / "cgroup.procs").exists():
            continue
        with suppress(FileNotFoundError):  # another process that starts removes the same
            children = [child for child in parent.iterdir() if child.is_dir()]
            if not min(remove_group(group, _GROUP_SECONDS) for group in (*children, parent)):
                log.warning("control_group_not_removed", group=line)


def _end_machines(path: Path) -> None:
    for process in Process.find(f"{path}/"):
        log.warning("leftover_vm_killed", pid=process.pid, run_directory=str(path))
        process.kill()
        is_dead = process.wait_dead_blocking(_DEATH_SECONDS)
        process.close()
        if not is_dead:
            raise HypervisorError(f"QEMU process {process.pid} of {path} does not die; end it by hand and try again")


def _remove_all(path: Path, directory: int) -> None:
    _remove_groups(path, directory)
    for attempt in range(_CLEAR_ATTEMPTS):  # libvirt's threads may still be writing about a domain that has just ended
        entries = [entry for entry in os.listdir(directory) if entry != LOCK_FILE]
        if not entries:
            # The lock goes last: a directory that could not be emptied keeps it, and the next process tries again.
            with suppress(FileNotFoundError):
                os.unlink(LOCK_FILE, dir_fd=directory)
            try:
                path.rmdir()
            except FileNotFoundError:
                return
            except OSError:  # a thread of libvirt was quicker
                os.close(os.open(LOCK_FILE, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory))
                continue
            return
        if attempt:
            time.sleep(_CLEAR_SECONDS)
        for entry in entries:
            _remove(entry, directory)
    log.warning("run_directory_not_cleared", path=str(path))


def _remove(name: str, directory: int) -> None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=directory)
            return
    except FileNotFoundError:  # libvirt's threads remove files, too
        return
    shutil.rmtree(name, ignore_errors=True, dir_fd=directory)
