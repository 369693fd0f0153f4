"""What `sandbox doctor` finds about the host: packages, directories, memory, and what exposes guests to each other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from sandbox.cli.check import Check
from sandbox.config import HostConfig
from sandbox.setup import packages

_DISK_BYTES = 2_000_000_000
_MEMORY_MIB = 512
_OTHERS_WRITE, _OTHERS_READ, _OTHERS_PASS = 0o002, 0o004, 0o001


def packages_(_config: HostConfig) -> Iterator[Check]:
    """Debian packages, present and new enough."""
    lacking = packages.missing()
    if lacking:
        yield Check("packages", "fail", f"missing or too old: {' '.join(lacking)}", "sandbox setup")
    else:
        yield Check("packages", "ok", "all system packages are there")


def directories(config: HostConfig) -> Iterator[Check]:
    """Whether they can be written and by whom else, and free space."""
    for name, path in (("data", config.data_dir), ("runtime", config.runtime_dir)):
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not os.access(existing, os.W_OK):
            variable = f"SANDBOX_{name.upper()}_DIR"
            yield Check(name, "fail", f"{path} cannot be written", f"export {variable}=/a/directory/of/yours")
            continue
        free = shutil.disk_usage(existing).free
        scarce = name == "data" and free < _DISK_BYTES
        remedy = "sandbox image prune" if scarce else ""
        yield Check(name, "warn" if scarce else "ok", f"{path}, {free / 1e9:.1f} GB free", remedy)
        if path.exists() and (exposed := _open_to_others(path)):
            found = f"other users can write {', '.join(map(str, exposed))}, and with that control every guest"
            yield Check(name, "warn", found, f"chmod o-w {' '.join(map(str, exposed))}")
        if name == "data" and path.exists() and _is_readable_by_all(path):
            found = f"every user of this host can read {path}: images, and what was in templates' memory"
            group = f"chgrp libvirt-qemu {path} && chmod 750 {path}" if os.geteuid() == 0 else f"chmod 700 {path}"
            yield Check(name, "warn", found, group)


def memory(config: HostConfig) -> Iterator[Check]:
    """What is available, what was promised to guests, and pressure."""
    from sandbox.hypervisor.host import Hypervisor
    from sandbox.hypervisor.resources import available_mib, pressure

    free = available_mib()
    status: Literal["ok", "warn"] = "ok" if free >= _MEMORY_MIB else "warn"
    yield Check("memory", status, f"{free} MiB available", "" if status == "ok" else "end something, or add memory")
    admission = Hypervisor.connect_blocking(config).admission
    whose = "all users" if admission.refused is None else f"this user's processes only: {admission.refused}"
    waiting = pressure()
    stalled = "not measured by this kernel" if waiting is None else f"{waiting:g} % of the last 10 s"
    found = f"{admission.ledger.total_mib()} of {admission.budget_mib} MiB promised to guests, counted over {whose}"
    remedy = "" if admission.refused is None else "as root, remove what stands there, or `install -d -m 1777 /run/lock`"
    yield Check("admission", "ok" if admission.refused is None else "warn", f"{found}; pressure {stalled}", remedy)


def exposure(_config: HostConfig, *, root: Path = Path("/")) -> Iterator[Check]:
    """Settings of the kernel that let guests learn of each other, or their secrets reach a disk."""
    if _read(root / "sys/kernel/mm/ksm/run") == "1":
        found = "kernel same-page merging is on; VMs keep their memory out of it, as `confinement` above has checked"
        yield Check("ksm", "ok", found)
    swaps = [line.split() for line in _read(root / "proc/swaps").splitlines()[1:]]
    if swaps:
        names = ", ".join(fields[0] for fields in swaps)
        found = f"guests' memory, secrets included, can be written to swap ({names})"
        yield Check("swap", "warn", found, "swapoff -a, encrypt it, or give VMs control groups of version 2")
    flaws = root / "sys/devices/system/cpu/vulnerabilities"
    files = sorted(flaws.iterdir()) if flaws.is_dir() else []
    open_ = [f"{path.name} ({said})" for path in files if (said := _read(path)).startswith("Vulnerable")]
    if open_:
        remedy = "update microcode and kernel, and boot without mitigations=off"
        yield Check("mitigations", "warn", f"the processor leaks between guests: {', '.join(open_)}", remedy)
    elif files:
        yield Check("mitigations", "ok", f"{len(files)} known flaws of processors, none of them open here")
    pattern = _read(root / "proc/sys/kernel/core_pattern")
    if pattern.startswith("|"):
        program = pattern[1:].split()[0] if pattern[1:].split() else "a program"
        found = f"a crash hands the process to {program}, whatever its limit; QEMU keeps guests' memory out of dumps"
        yield Check("core dumps", "warn", found, "sysctl kernel.core_pattern=core")
    else:
        yield Check("core dumps", "ok", "off for QEMU by its limit")


def _is_readable_by_all(path: Path) -> bool:
    return bool(path.stat().st_mode & _OTHERS_READ) and all(
        parent.stat().st_mode & _OTHERS_PASS for parent in (path, *path.parents)
    )


def _open_to_others(path: Path) -> list[Path]:
    """Return those directories on the way to images and templates, and these, that every user may write."""
    wanted = [path, *(entry for entry in path.iterdir() if entry.is_dir())]
    return [entry for entry in wanted if entry.stat().st_mode & _OTHERS_WRITE]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
