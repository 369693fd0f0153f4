"""The control group of one VM: what its QEMU may take of the host, and what the kernel says of its end.

Standard library only, and everything blocks. Versions 1 and 2 differ in the names of files and in that a group of
version 1 is several directories, one in each controller's hierarchy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PERIOD = 100_000
_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Caps:
    """The most that one VM's QEMU gets, memory of kernel and page cache on its behalf included."""

    memory_bytes: int
    pids: int
    """Processes and threads."""
    cpus: float | None = None
    """Processors' worth of time; None leaves it alone."""


class Group:
    """One VM's control group, made before its QEMU runs and removed after it is dead."""

    def __init__(self, directories: Mapping[str, Path], versions: Mapping[str, int]) -> None:
        self._directories = dict(directories)
        self._versions = versions

    def __repr__(self) -> str:
        return f"<Group {' '.join(f'{name}={path}' for name, path in self._directories.items())}>"

    @classmethod
    def make(cls, name: str, parents: Mapping[str, Path], versions: Mapping[str, int], caps: Caps) -> Group:
        """Make the group `name` below each controller's parent. Raises `OSError`, and then leaves nothing."""
        group = cls({controller: parent / name for controller, parent in parents.items()}, versions)
        try:
            for path in group.paths:
                path.mkdir()
            for controller in parents:
                group._cap(controller, caps)
        except OSError:
            group.remove()
            raise
        return group

    @property
    def paths(self) -> set[Path]:
        """The directories that make it up: one in version 2, up to three in version 1."""
        return set(self._directories.values())

    def enter(self, pid: int) -> None:
        """Put a process, all its threads, and what it starts from now on, into the group. Raises `OSError`."""
        for path in self.paths:
            _write(path / "cgroup.procs", str(pid))

    def oom_kills(self) -> int | None:
        """Return how many of its processes the kernel has killed for want of memory; None if it cannot tell.

        May be called on an event loop: it reads a few bytes that the kernel has in memory.
        """
        if "memory" not in self._directories:
            return None
        name = "memory.events" if self._versions["memory"] == 2 else "memory.oom_control"
        try:
            descriptor = os.open(self._directories["memory"] / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            lines = os.pread(descriptor, 4096, 0).decode().splitlines()
        finally:
            os.close(descriptor)
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)

    def remove(self, seconds: float = 0.0) -> bool:
        """Remove the group, waiting so long for the kernel to have taken the dead out; return whether it is gone."""
        return min(remove_group(path, seconds) for path in self.paths)  # tries each

    def _cap(self, controller: str, caps: Caps) -> None:
        path, is_unified = self._directories[controller], self._versions[controller] == 2
        if controller == "pids":
            _write(path / "pids.max", str(caps.pids))
        elif controller == "memory" and is_unified:
            _write(path / "memory.max", str(caps.memory_bytes))
            _write_if_there(path / "memory.swap.max", "0")  # what a guest keeps secret does not go to a disk
        elif controller == "memory":
            _write(path / "memory.limit_in_bytes", str(caps.memory_bytes))
            _write_if_there(path / "memory.memsw.limit_in_bytes", str(caps.memory_bytes))
        elif controller == "cpu" and caps.cpus is not None:
            quota = str(max(1000, int(caps.cpus * _PERIOD)))
            if is_unified:
                _write(path / "cpu.max", f"{quota} {_PERIOD}")
            else:
                _write(path / "cpu.cfs_period_us", str(_PERIOD))
                _write(path / "cpu.cfs_quota_us", quota)


def remove_group(path: Path, seconds: float = 0.0) -> bool:
    """Remove one directory of a control group; return whether it is gone. The kernel refuses while somebody lives."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True


def _write(path: Path, text: str) -> None:
    """Write to a kernel's file in one call; never make a file where none is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _write_if_there(path: Path, text: str) -> None:
    with suppress(FileNotFoundError, PermissionError):
        _write(path, text)
