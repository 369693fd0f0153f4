"""What contains a QEMU process: read from the kernel about the living process, not from how it was asked to be."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sandbox.hypervisor.priority import session_nice
from sandbox.hypervisor.process import command_line_arguments
from sandbox.proc import proc_text

DENIALS = ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")
"""The groups of system calls that QEMU's own filter can deny, beside what it always denies."""
DEVICES = {
    "q35-pcihost": "the machine's root",
    "mch": "PCI host bridge",
    "ICH9-LPC": "bridge to the old devices below",
    "ioapic": "interrupt controller; `kvm-ioapic` under KVM",
    "apic": "the processor's own interrupt controller; `kvm-apic` under KVM",
    "kvmvapic": "part of it",
    "isa-i8259": "interrupt controller of the PC, twice; `kvm-i8259` under KVM",
    "i8257": "DMA controller of the PC, twice: part of the bridge",
    "isa-pit": "timer of the PC; `kvm-pit` under KVM",
    "hpet": "the reference by which the kernel measures the processor's clock",
    "isa-pcspk": "gate of that timer, without a sound back-end",
    "mc146818rtc": "clock of the PC",
    "isa-serial": "the kernel's console, to a ring of 64 KiB on the host",
    "serial": "part of it",
    "fw_cfg_io": "the way of kernel, initramfs and tables into the guest",
    "virtio-blk-pci": "the root file system, read-only",
    "virtio-blk-device": "part of it",
    "virtio-serial-pci": "the channel to the agent",
    "virtio-serial-device": "part of it",
    "virtserialport": "its one port",
}
"""Every type of device that QEMU may report for a VM of ours beside its processors, and what it is for."""
_KVM_DEVICES = frozenset({"kvm-apic", "kvm-ioapic", "kvm-i8259", "kvm-pit", "kvmclock", "vmgenid"})
_PROCESSOR = "-x86_64-cpu"
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
_FLAGS = re.compile(r"^flags:\s*([0-7]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Confinement:
    """One QEMU process as the kernel sees it."""

    uid: int
    gid: int
    has_seccomp_filter: bool
    no_new_privileges: bool
    capabilities: int
    """Those that it has or could take: permitted, effective, inheritable and ambient ones together."""
    core_bytes: int | None
    """The most that it may dump; None is without bound."""
    open_files: int | None
    denials: tuple[str, ...]
    """What its filter denies, by its command line."""
    has_defaults: bool
    """Whether QEMU was let add devices and settings that nobody asked for."""
    writable_files: tuple[str, ...] | None
    """Regular files that it holds open for writing, or has mapped so that writes reach them.

    None where we may not look: at another user's process, root may only with CAP_SYS_PTRACE.
    """
    is_mergeable: bool | None
    """Whether the kernel may merge its memory with that of other processes (KSM). None where we may not look."""
    groups: tuple[str, ...]
    """Its control groups, as `/proc/PID/cgroup` has them."""
    nice: int
    """How its first thread yields to others who want a processor, and new ones as well; 0 is not at all."""
    session_nice: int | None
    """How its session does; None where it competes by itself."""

    @classmethod
    def of(cls, pid: int) -> Confinement:
        """Look at a living process. Blocks; raises `OSError` when it is gone or may not be looked at."""
        process = Path(f"/proc/{pid}")
        status = dict(line.split(":\t", 1) for line in proc_text(process / "status").splitlines() if ":\t" in line)
        arguments = command_line_arguments(pid)
        limits = proc_text(process / "limits")
        return cls(
            uid=int(status["Uid"].split()[1]),
            gid=int(status["Gid"].split()[1]),
            has_seccomp_filter=status["Seccomp"].strip() == "2",
            no_new_privileges=status["NoNewPrivs"].strip() == "1",
            capabilities=_or(int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")),
            core_bytes=_hard_limit(limits, "Max core file size"),
            open_files=_hard_limit(limits, "Max open files"),
            denials=_denials(arguments),
            has_defaults="-nodefaults" not in arguments or "-no-user-config" not in arguments,
            writable_files=_written(process),
            is_mergeable=_mergeable(process),
            groups=tuple(proc_text(process / "cgroup").splitlines()),
            nice=os.getpriority(os.PRIO_PROCESS, pid),
            session_nice=session_nice(pid),
        )

    def yields_to(self, other: Confinement) -> bool:
        """Whether both its threads and its session, where that counts, get less of a busy processor than the other."""
        return self.nice > other.nice and self._nice_that_counts > other._nice_that_counts

    @property
    def _nice_that_counts(self) -> int:
        """Between two sessions, and between a session and what is in none; inside one session it is `nice`."""
        return self.nice if self.session_nice is None else self.session_nice

    def faults(self) -> list[str]:
        """Return one line for each layer that is missing."""
        found = {
            "its seccomp filter is off": not self.has_seccomp_filter,
            "it may gain privileges by executing files": not self.no_new_privileges,
            f"its filter does not deny {', '.join(sorted(set(DENIALS) - set(self.denials)))}": set(self.denials)
            != set(DENIALS),
            f"it has capabilities ({self.capabilities:x})": self.capabilities != 0,
            "it runs as root": self.uid == 0,
            "it may dump its memory to disk": self.core_bytes != 0,
            "QEMU's default devices were let in": self.has_defaults,
            "the kernel may merge its guest's memory with that of other guests": self.is_mergeable is True,
        }
        return [fault for fault, is_so in found.items() if is_so]


def unexpected(devices: Iterable[str]) -> list[str]:
    """Return those of QEMU's devices that `DEVICES` does not have."""
    known = DEVICES.keys() | _KVM_DEVICES
    return sorted({kind for kind in devices if kind not in known and not kind.endswith(_PROCESSOR)})


def _or(masks: Iterable[int]) -> int:
    result = 0
    for mask in masks:
        result |= mask
    return result


def _hard_limit(limits: str, name: str) -> int | None:
    line = next(line for line in limits.splitlines() if line.startswith(name))
    value = line[26:].split()[1]
    return None if value == "unlimited" else int(value)


def _denials(arguments: list[str]) -> tuple[str, ...]:
    if "-sandbox" not in arguments:
        return ()
    options = arguments[arguments.index("-sandbox") + 1].split(",")
    return tuple(name for name in DENIALS if options[0] == "on" and f"{name}=deny" in options)


def _written(process: Path) -> tuple[str, ...] | None:
    try:
        return tuple(sorted(_opened(process) | _mapped(process)))
    except PermissionError:
        return None


def _mergeable(process: Path) -> bool | None:
    try:
        lines = proc_text(process / "smaps").splitlines()
    except PermissionError:
        return None
    return any("mg" in line.split() for line in lines if line.startswith("VmFlags:"))


def _opened(process: Path) -> set[str]:
    found = set()
    for entry in (process / "fd").iterdir():
        try:
            target, text = str(entry.readlink()), proc_text(process / "fdinfo" / entry.name)
            is_file = entry.stat().st_mode & 0o170000 == 0o100000
        except FileNotFoundError:  # closed meanwhile
            continue
        match = _FLAGS.search(text)
        if is_file and match is not None and int(match[1], 8) & _ACCESS != os.O_RDONLY:
            found.add(target)
    return found


def _mapped(process: Path) -> set[str]:
    found = set()
    for line in proc_text(process / "maps").split("\n"):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/") and fields[1][1] == "w" and fields[1][3] == "s":
            found.add(fields[5])
    return found
