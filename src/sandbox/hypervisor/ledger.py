"""How much guest memory the processes of this host have promised together: exact, and nothing in it can go stale.

Each process keeps one small file in a directory that all share, and a lock on it for as long as it lives. Who wants to
promise more locks the directory, adds up the files whose lock is held, and writes its own. The kernel frees the locks
of the dead. Everything blocks.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox.errors import HostResources, HypervisorError
from sandbox.inherited import Descriptor

_NAME = re.compile(r"[0-9]+-[0-9a-f]{8}")
_LOCK_SECONDS = 5.0
_POLL_SECONDS = 0.0005
_WIDTH = 20
_SHARED_MODE = 0o1777


class Ledger:
    """This process's promises, among those of all others that use the same directory."""

    def __init__(self, directory: Path, name: str) -> None:
        """Open the ledger in `directory`, which is made, for everybody, if it does not exist."""
        self.directory = directory
        self._promises: dict[str, int] = {}
        self._threads = threading.Lock()
        try:
            _make_shared(directory)
            self._lock = Descriptor(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._path = directory / f"{os.geteuid()}-{name}"
            with self._locked():  # nobody takes a file for a dead process's before it is locked
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
                self._file = Descriptor(os.open(self._path, flags, 0o644))
                os.fchmod(self._file.fileno(), 0o644)
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._write()
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
            others = sum(self._others())
            if others + self.own_mib + mib > budget_mib:
                raise HostResources(
                    f"guests have been promised {self.own_mib} MiB by this process and {others} MiB by others; "
                    f"{mib} MiB more would exceed the {budget_mib} MiB that may be promised on this host; "
                    "end something, use smaller VMs, or raise `memory_overcommit`"
                )
            self._promises[vm] = mib
            self._write()

    def release(self, vm: str) -> None:
        """Take a promise back: the VM's QEMU is dead. May be called twice."""
        with self._threads:
            if self._promises.pop(vm, None) is not None and self._file.is_open:
                self._write()

    def total_mib(self) -> int:
        """Return what all processes have promised."""
        with self._locked():
            return sum(self._others()) + self.own_mib

    def close(self) -> None:
        """Take everything back. May be called twice; in a child that was forked it does nothing."""
        if self._file.is_open:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._lock.close()

    def _write(self) -> None:
        os.pwrite(self._file.fileno(), f"{self.own_mib:>{_WIDTH}}\n".encode(), 0)

    def _others(self) -> Iterator[int]:
        """Yield the promise of each living process; remove our user's files of dead ones."""
        for entry in os.scandir(self.directory):
            if entry.name == self._path.name or not _NAME.fullmatch(entry.name):
                continue
            with suppress(OSError):  # removed by its owner right now, or not a file that we can look at
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    yield self._promise_in(entry, descriptor)
                finally:
                    os.close(descriptor)

    @staticmethod
    def _promise_in(entry: os.DirEntry[str], descriptor: int) -> int:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not entry.name.startswith(f"{status.st_uid}-"):
            return 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, _WIDTH, 0)
            return int(text) if text.strip().isdigit() else 0
        if os.geteuid() in (0, status.st_uid):
            Path(entry.path).unlink(missing_ok=True)
        return 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the directory's lock, among processes, and our own, among threads."""
        with self._threads:
            deadline = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise HostResources(
                            f"some process has held the lock of {self.directory} for {_LOCK_SECONDS:g} s; "
                            "`fuser` tells which"
                        ) from None
                    time.sleep(_POLL_SECONDS)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


def _make_shared(directory: Path) -> None:
    """Make a directory in which everybody may make files and nobody may remove another's."""
    if directory.is_dir():
        return
    unborn = directory.with_name(f".{directory.name}-{os.getpid()}")
    unborn.mkdir(parents=True)
    unborn.chmod(_SHARED_MODE)
    try:
        unborn.rename(directory)
    except OSError:  # somebody was faster: theirs is not empty
        unborn.rmdir()
