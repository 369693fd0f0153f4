"""What a figure must be read with: machine, versions, load."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from sandbox.hypervisor.host import Hypervisor
from sandbox.hypervisor.spec import MachineSpec


def environment(host: Hypervisor, spec: MachineSpec) -> dict[str, object]:
    """Return a description of this host, and of the machines on it, for a benchmark's document."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "machine": cpu.split(":", 1)[1].strip(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024),
        "kernel": platform.release(),
        "accelerator": host.platform.accelerator,
        "accelerator_verdict": host.facts.kvm_verdict,
        "qemu": host.platform.qemu_version,
        "libvirt": host.connection.version,
        "machine_type": host.platform.machine_type,
        "python": platform.python_version(),
        "sandbox": version("sandbox-vmpool"),
        "guest_memory_mib": spec.memory_mib,
        "guest_vcpus": spec.vcpus,
        "load_before": os.getloadavg()[0],
    }
