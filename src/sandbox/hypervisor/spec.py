"""What a machine consists of, in words that any hypervisor understands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

AcceleratorKind = Literal["kvm", "tcg"]
TRANSLATION_MIB = 128
"""What QEMU may take under TCG for translated code; it is told so, because its own default is up to 1 GiB."""


@dataclass(frozen=True)
class MachineSpec:
    """Everything that decides how a VM is built; two machines with equal specs have equal hardware.

    `memory_file` backs the guest's RAM: written through when `memory_shared`, else mapped privately and read-only.
    Without it the RAM is anonymous. `state` is the device state to load instead of booting. A boot that `is_traced` has
    firmware, init and agent say on the console how far they have come.
    """

    kernel: Path
    initrd: Path
    root: Path
    memory_mib: int
    vcpus: int
    memory_file: Path | None = None
    memory_shared: bool = False
    state: Path | None = None
    is_traced: bool = False

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * 1024 * 1024


@dataclass(frozen=True)
class Platform:
    """The host's side of a machine: what a saved state depends on besides the spec."""

    emulator: str
    qemu_version: str
    machine_type: str
    accelerator: AcceleratorKind
    cpu: str
    libvirt: str = ""
    """The version of libvirt, which decides how QEMU is started; empty until it is connected."""

    @property
    def cpu_mode(self) -> str:
        return "host-passthrough" if self.accelerator == "kvm" else "maximum"
