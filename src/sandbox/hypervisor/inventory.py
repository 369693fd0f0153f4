"""What exists on this host, and who owns it: read from /proc and from run directories, changing nothing."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.hypervisor.groups import left_over
from sandbox.hypervisor.rundir import has_owner, owner_pid, run_directories
from sandbox.proc import mounts, proc_text

_GUEST = re.compile(r"guest=(sbx-([0-9a-f]{8})-\d+),")
_SOCKETS = ("*.sock", "*.con")
_KINDS = {"socket": "sockets", "anon_inode:[pidfd]": "pidfds", "pipe": "pipes"}


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """One QEMU process that some process of ours started."""

    name: str
    pid: int
    run_directory: str
    state: str
    """As the kernel tells: R, S, T (stopped), Z (dead, not yet reaped)."""
    seconds: float
    """Since it was started."""
    cpu_seconds: float
    memory_mib: float | None
    """Its proportional share of memory; None where we may not look."""


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """One run directory, and the process that holds it."""

    run_directory: Path
    pid: int | None
    is_alive: bool
    machines: list[MachineRecord] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)
    descriptors: dict[str, int] = field(default_factory=dict)
    """Open descriptors of the owner by kind; empty where we may not look."""


def owners(runtime: Path) -> list[OwnerRecord]:
    """Return every run directory with what belongs to it."""
    machines = find_machines(runtime)
    records = []
    for path in run_directories(runtime):
        pid, alive = owner_pid(path), has_owner(path)
        records.append(
            OwnerRecord(
                run_directory=path,
                pid=pid,
                is_alive=alive,
                machines=[machine for machine in machines if machine.run_directory == path.name],
                sockets=sorted(entry.name for pattern in _SOCKETS for entry in path.glob(pattern)),
                descriptors=_descriptors(pid) if alive and pid is not None else {},
            )
        )
    return records


def find_machines(runtime: Path) -> list[MachineRecord]:
    """Return every QEMU process whose run directory is, or was, in `runtime`.

    Those of a container or another root directory are not ours, whatever their paths look like.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (record := _machine(entry, runtime)) is not None:
            found.append(record)
    return sorted(found, key=lambda machine: machine.pid)


def leaks(runtime: Path) -> list[str]:
    """Return one line for everything that belongs to nobody: the next process that starts clears it."""
    records = owners(runtime)
    found = [
        f"run directory {record.run_directory}: its process {record.pid or 'of unknown pid'} is dead"
        for record in records
        if not record.is_alive
    ]
    known = {record.run_directory.name for record in records if record.is_alive}
    for machine in find_machines(runtime):
        if machine.run_directory not in known:
            found.append(f"QEMU process {machine.pid} ({machine.name}): no living process owns it")
        elif machine.state == "Z":
            found.append(f"QEMU process {machine.pid} ({machine.name}): dead, but not reaped")
    if runtime.is_dir():
        found += [f"control group {path}: its run directory is gone" for path in left_over(runtime)]
    return found


def _machine(entry: Path, runtime: Path) -> MachineRecord | None:
    try:
        arguments = proc_text(entry / "cmdline")
        match = _GUEST.search(arguments)
        if match is None or not _is_qemu(arguments) or f"{runtime}/{match[2]}/" not in arguments:
            return None
        if not _has_our_root(entry):
            return None
        fields = proc_text(entry / "stat").rpartition(")")[2].split()
    except OSError:
        return None
    tick = os.sysconf("SC_CLK_TCK")
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return MachineRecord(
        name=match[1],
        pid=int(entry.name),
        run_directory=match[2],
        state=fields[0],
        seconds=uptime - int(fields[19]) / tick,
        cpu_seconds=(int(fields[11]) + int(fields[12])) / tick,
        memory_mib=_proportional_mib(entry),
    )


def _is_qemu(arguments: str) -> bool:
    return "qemu-system" in arguments.split("\0", 1)[0]


def _has_our_root(entry: Path) -> bool:
    """Return whether a process has the root directory that we have.

    To follow its link takes CAP_SYS_PTRACE for another user's process, which root lacks in most containers. What is
    mounted there everybody may read.
    """
    try:
        return (entry / "root").samefile("/")
    except PermissionError:
        return _root_mount(entry) == _root_mount(Path("/proc/self"))


def _root_mount(entry: Path) -> tuple[int, str] | None:
    """Return the device and the directory on it that a process has mounted as its root; None if nothing is."""
    return next(((mount.device, mount.root) for mount in reversed(mounts(entry)) if mount.point == "/"), None)


def _proportional_mib(entry: Path) -> float | None:
    try:
        rollup = proc_text(entry / "smaps_rollup")
    except OSError:
        return None
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(match[1]) / 1024 if match else None


def _descriptors(pid: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # closed meanwhile
                    link = os.readlink(entry.path)  # noqa: PTH115 - of descriptors
                    kind = _KINDS.get(link.partition(":[")[0], _KINDS.get(link, "others"))
                    counts[kind] = counts.get(kind, 0) + 1
    except OSError:
        return {}
    return counts
