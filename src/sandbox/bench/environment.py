"""What a figure must be read with: machine, versions, load."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from sandbox.template.template import Template


def environment(template: Template) -> dict[str, object]:
    """Return a description of this host for a benchmark's document."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "machine": cpu.split(":", 1)[1].strip(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024),
        "kernel": platform.release(),
        "accelerator": template.host.platform.accelerator,
        "accelerator_verdict": template.host.facts.kvm_verdict,
        "qemu": template.host.platform.qemu_version,
        "libvirt": template.host.connection.version(),
        "machine_type": template.host.platform.machine_type,
        "python": platform.python_version(),
        "sandbox": version("sandbox-vmpool"),
        "guest_memory_mib": template.spec.memory_mib,
        "guest_vcpus": template.spec.vcpus,
        "load_before": os.getloadavg()[0],
    }
