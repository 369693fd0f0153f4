"""What the host has left: memory, by the kernel's estimate and by the limits that we run under, and pressure."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from sandbox.errors import HostResources
from sandbox.hypervisor.cgroup_place import hierarchies
from sandbox.log import log

PRESSURE = Path("/proc/pressure/memory")
_BOUNDLESS = 1 << 60
_DESCRIPTORS = 16 * 1024
"""Enough for 2,900 VMs."""
_FILES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}


class HostMemory:
    """This host's memory as far as this process may use it. Limits of its control groups are found once."""

    def __init__(self) -> None:
        self._bounds = _bounds()
        self.total_mib = min([_meminfo("MemTotal"), *(limit for limit, _ in self._bounds)])
        """What there is altogether."""

    def available_mib(self) -> int:
        """Return what can be had without swapping: the kernel's estimate, or what is left of our own limits."""
        return min([_meminfo("MemAvailable"), *(limit - _used_mib(group) for limit, group in self._bounds)])


def available_mib() -> int:
    """Return the memory that can be had without swapping, in MiB."""
    return HostMemory().available_mib()


def raise_descriptor_limit() -> None:
    """Raise this process's soft limit of descriptors, which are some six for each VM, as far as its hard limit allows.

    The usual soft limit of 1024 is there for programs that use `select`, and ends near 185 VMs. QEMU has a limit of its
    own; other programs that this process starts inherit the higher one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        log.info("descriptor_limit_raised", before=soft, now=wanted)


def pressure(path: Path = PRESSURE) -> float | None:
    """Return the share of the last 10 s, in percent, in which some task waited for memory; None if unknown."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(descriptor, 4096).decode().split()
        finally:
            os.close(descriptor)
        return float(fields[1].removeprefix("avg10=")) if fields[:1] == ["some"] else None
    except (OSError, ValueError, IndexError):  # the kernel was built or booted without it
        return None


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) // 1024
    raise HostResources(f"/proc/meminfo has no line {name}; is /proc mounted?")


def _bounds() -> list[tuple[int, tuple[Path, Path]]]:
    """Return each limit in MiB that this process runs under, with the files that tell its use."""
    found = []
    try:
        tree = hierarchies().get("memory")
    except OSError:
        tree = None
    if tree is None:
        return []
    limit_name, usage_name = _FILES[tree.version]
    for group in (tree.own, *tree.own.parents):
        if not group.is_relative_to(tree.mount):
            break
        try:
            limit = int((group / limit_name).read_text())
        except (OSError, ValueError):  # no such file at the root, or `max`
            continue
        if limit < _BOUNDLESS:
            found.append((limit >> 20, (group / usage_name, group / "memory.stat")))
    return found


def _used_mib(group: tuple[Path, Path]) -> int:
    """Return what a group uses and cannot give back at once."""
    usage, stat = group
    try:
        fields = dict(line.split() for line in stat.read_text().splitlines())
        idle = int(fields.get("total_inactive_file") or fields.get("inactive_file") or 0)
        return max(0, int(usage.read_text()) - idle) >> 20
    except (OSError, ValueError):
        return 0
