"""Whether the host can carry one more machine."""

from __future__ import annotations

from pathlib import Path

from sandbox.errors import HostResources


def available_mib() -> int:
    """Return the memory that can be had without swapping, in MiB, as the kernel estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    raise HostResources("/proc/meminfo does not tell the available memory; is /proc mounted?")


def admit(memory_mib: int, reserve_mib: int) -> None:
    """Raise `HostResources` unless a guest could fill its memory and `reserve_mib` would still be left."""
    available = available_mib()
    if available < memory_mib + reserve_mib:
        raise HostResources(
            f"{available} MiB of memory are available, one more VM may need {memory_mib} MiB and {reserve_mib} MiB "
            "stay in reserve; end something, use smaller VMs, or lower `memory_reserve_mib`"
        )
