"""What a QEMU may take grows with the machine that it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.config import TemplateConfig
from sandbox.errors import ConfigError
from sandbox.hypervisor import connection
from sandbox.hypervisor.groups import caps
from sandbox.hypervisor.spec import AcceleratorKind, MachineSpec, Platform

GIB, MIB = 1 << 30, 1 << 20


def _overhead_mib(memory_mib: int, accelerator: AcceleratorKind) -> int:
    spec = MachineSpec(Path("k"), Path("i"), Path("r"), memory_mib=memory_mib, vcpus=1)
    bound = caps(spec, Platform("qemu", "10.0.2", "q35", accelerator, "cpu"), None).memory_bytes
    return bound // MIB - memory_mib


@pytest.mark.parametrize(("accelerator", "tables", "fixed"), [("kvm", 2, 96), ("tcg", 1, 96 + 128)])
def test_a_large_guest_may_fill_its_memory(accelerator: AcceleratorKind, tables: int, fixed: int) -> None:
    """Eight bytes for each page of 4 KiB, in the host's table and under KVM in the processor's, come on top."""
    pages = 64 * GIB // 4096
    assert _overhead_mib(64 * 1024, accelerator) == fixed + tables * 8 * pages // MIB
    assert _overhead_mib(128, accelerator) == fixed


def test_the_most_processors_have_their_descriptors() -> None:
    """Under KVM each has two of its own, and two of its queue at the disk."""
    most = connection._MOST_VCPUS
    assert TemplateConfig(vcpus=most).vcpus == most
    with pytest.raises(ConfigError):
        TemplateConfig(vcpus=most + 1)
    assert 4 * most + 30 < connection._MAX_FILES
