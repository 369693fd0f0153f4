"""How much guest memory the processes of this host have promised together: nothing in it can go stale.

Each user has a directory in one that all share, and each process a small file in its user's, with a lock on it for as
long as it lives. To promise more, a process writes that, adds up the files of living processes, and takes it back if it
is too much. The kernel frees the locks of the dead. Everything blocks.

No user needs to trust another. Nobody else can write in a user's directory, nor take a lock in it that counts: for that
of a process one must be allowed to write its file, for that among a user's processes to open it. What other users
promise counts for half of the budget at most, so none can keep another from starting VMs by promising. What they really
use is in the kernel's own estimate, which admission asks as well.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from sandbox.errors import HostResources, HypervisorError
from sandbox.inherited import Descriptor
from sandbox.paths import owner_of

_NAME = re.compile(r"[0-9a-f]{8}")
_USER = re.compile(r"sandbox-([0-9]+)")
_LOCK = "lock"
_LOCK_SECONDS = 5.0
_POLL_SECONDS = 0.0005
_WIDTH = 20
_SHARED_MODE, _OWN_MODE = 0o1777, 0o755
_MOST_ENTRIES, _MOST_USERS, _MOST_PROCESSES = 10_000, 256, 1024
"""Of what others may fill the shared directory and theirs with, no more than this is looked at."""
_FLOCK = struct.Struct("hhqqi4x")
_FOREIGN_SHARE = 2
"""All other users together count for one part in so many of the budget; root, whom all trust, in full."""


class Ledger:
    """This process's promises, among those of all others that use the same directory."""

    def __init__(self, directory: Path, name: str) -> None:
        """Open the ledger in `directory`, which is made, for everybody, if it does not exist.

        Raises `HypervisorError` if somebody else could put anything there in our place.
        """
        self.directory = directory
        self._own = directory / f"sandbox-{os.geteuid()}"
        self._promises: dict[str, int] = {}
        self._threads = threading.Lock()
        try:
            _make_shared(directory)
            _make_own(self._own)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._lock = Descriptor(os.open(self._own / _LOCK, flags, 0o600))
            self._path = self._own / name
            with self._locked():
                self._file = Descriptor(os.open(self._path, flags | os.O_EXCL, 0o600))
                fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _lock_of(fcntl.F_WRLCK))
                self._write()
                os.fchmod(self._file.fileno(), 0o644)  # others may look now: it is locked
        except OSError as error:
            raise HypervisorError(f"{directory} cannot be used for admission: {error.strerror}") from error

    def __repr__(self) -> str:
        return f"<Ledger {self.directory} {self.own_mib} MiB>"

    @property
    def own_mib(self) -> int:
        """What this process has promised."""
        return sum(self._promises.values())

    def promise(self, vm: str, mib: int, budget_mib: int) -> None:
        """Promise a VM its memory; raise `HostResources` when all processes' promises would exceed the budget."""
        with self._locked():
            self._promises[vm] = mib
            self._write()  # before looking: of two users who promise at once, one at least sees the other
            others = self._others_mib(budget_mib)
            if others + self.own_mib <= budget_mib:
                return
            del self._promises[vm]
            self._write()
        raise HostResources(
            f"guests have been promised {self.own_mib} MiB by this process and {others} MiB by others; "
            f"{mib} MiB more would exceed the {budget_mib} MiB that may be promised on this host; "
            "end something, use smaller VMs, or raise `memory_overcommit`"
        )

    def release(self, vm: str) -> None:
        """Take a promise back: the VM's QEMU is dead. May be called twice."""
        with self._threads:
            if self._promises.pop(vm, None) is not None and self._file.is_open:
                self._write()

    def total_mib(self) -> int:
        """Return what all processes have promised."""
        with self._locked():
            return self._others_mib(None) + self.own_mib

    def close(self) -> None:
        """Take everything back. May be called twice; in a child that was forked it does nothing."""
        if self._file.is_open:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._lock.close()

    def _write(self) -> None:
        os.pwrite(self._file.fileno(), f"{self.own_mib:>{_WIDTH}}\n".encode(), 0)

    def _others_mib(self, budget_mib: int | None) -> int:
        """Return what counts of all other processes' promises; all of them, without a budget."""
        trusted = sum(self._promises_in(self._own, os.geteuid()))
        if os.geteuid() != 0:
            trusted += sum(self._promises_in(self.directory / "sandbox-0", 0))
        foreign = sum(sum(self._promises_in(path, uid)) for path, uid in self._others_directories())
        return trusted + (foreign if budget_mib is None else min(foreign, budget_mib // _FOREIGN_SHARE))

    def _others_directories(self) -> Iterator[tuple[Path, int]]:
        with os.scandir(self.directory) as entries:
            found = ((entry.path, match) for entry in islice(entries, _MOST_ENTRIES) if (match := _user(entry.name)))
            yield from ((Path(path), uid) for path, uid in islice(found, _MOST_USERS))

    def _promises_in(self, path: Path, uid: int) -> Iterator[int]:
        """Yield the promise of each living process of a user; remove our own files of dead ones."""
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # that user has none, or it is none
            return
        try:
            if os.fstat(directory).st_uid != uid:
                return
            is_own = uid == os.geteuid()
            with os.scandir(directory) as entries:
                names = [entry.name for entry in (entries if is_own else islice(entries, _MOST_PROCESSES))]
            for name in names:
                if _NAME.fullmatch(name) and not (is_own and name == self._path.name):
                    with suppress(OSError):  # removed by its owner right now, or not a file that we can look at
                        yield _promise(name, directory, uid, may_remove=is_own)
        finally:
            os.close(directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock among this user's processes, and our own, among threads."""
        with self._threads:
            deadline = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise HostResources(
                            f"a process of this user has held the lock {self._own / _LOCK} for {_LOCK_SECONDS:g} s; "
                            "`fuser` tells which"
                        ) from None
                    time.sleep(_POLL_SECONDS)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


def _promise(name: str, directory: int, uid: int, *, may_remove: bool) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != uid:
            return 0
        # Asked for, and not tried: a lock that tells of life is one that takes the right to write.
        held = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _lock_of(fcntl.F_RDLCK)))
        if held[0] == fcntl.F_WRLCK:
            text = os.pread(descriptor, _WIDTH, 0)
            return int(text) if text.strip().isdigit() else 0
        if may_remove:
            os.unlink(name, dir_fd=directory)
        return 0
    finally:
        os.close(descriptor)


def _lock_of(kind: int) -> bytes:
    """Return the kernel's description of a lock on a whole file."""
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def _user(name: str) -> int | None:
    """Return whose directory bears this name, if it is a user's other than root and ourselves."""
    match = _USER.fullmatch(name)
    return int(match[1]) if match is not None and int(match[1]) not in (0, os.geteuid()) else None


def _make_shared(directory: Path) -> None:
    """Make a directory in which everybody may make files and nobody may remove another's; check one that is there."""
    try:
        status = directory.lstat()
    except FileNotFoundError:
        unborn = directory.with_name(f".{directory.name}-{os.getpid()}")
        unborn.mkdir(parents=True)
        unborn.chmod(_SHARED_MODE)
        try:
            unborn.rename(directory)
        except OSError:  # somebody was faster: theirs is not empty
            unborn.rmdir()
        status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise HypervisorError(f"{directory} cannot be used for admission: it is a link or a file")
    if status.st_uid not in (0, os.geteuid()):
        raise HypervisorError(
            f"{directory} cannot be used for admission: {owner_of(directory)}, who could replace ours"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise HypervisorError(f"{directory} cannot be used for admission: others could replace ours; `chmod +t` it")


def _make_own(path: Path) -> None:
    """Make this user's directory; raise `HypervisorError` if somebody else has put one there."""
    with suppress(FileExistsError):
        path.mkdir(_OWN_MODE)
        path.chmod(_OWN_MODE)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise HypervisorError(f"{path} cannot be used for admission: {owner_of(path)}, or it is a link or a file")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise HypervisorError(f"{path} cannot be used for admission: others may write there; `chmod go-w` it")
