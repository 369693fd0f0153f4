"""What is written into a domain's XML for each accelerator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.hypervisor.domain_xml import domain_xml
from sandbox.hypervisor.spec import AcceleratorKind, MachineSpec, Platform

GENERATION = "c7a1f5be-3a6f-4b0e-9d62-6a9f5d3c1e02"
SPEC = MachineSpec(Path("/i/vmlinux"), Path("/i/initrd"), Path("/i/root.erofs"), memory_mib=256, vcpus=1)


def _xml(accelerator: AcceleratorKind, spec: MachineSpec = SPEC) -> str:
    platform = Platform("/usr/bin/qemu-system-x86_64", "10.0.2", "pc-q35-10.0", accelerator, "a processor")
    return domain_xml(
        spec,
        platform,
        name="vm",
        uuid="c7a1f5be-3a6f-4b0e-9d62-6a9f5d3c1e01",
        genid=GENERATION,
        channel=Path("/r/vm.sock"),
        console=Path("/r/vm.con"),
    )


@pytest.mark.parametrize(("accelerator", "has_generation"), [("kvm", True), ("tcg", False)])
def test_a_generation_id_is_there_under_kvm_only(accelerator: AcceleratorKind, has_generation: bool) -> None:
    """Under KVM the guest's kernel hears by itself that it is a clone; emulated ones hear it from the handshake."""
    assert (f"<genid>{GENERATION}</genid>" in _xml(accelerator)) is has_generation


def test_only_a_machine_that_boots_has_a_kernel() -> None:
    """A clone's QEMU need not read one; it loads the state of a guest whose kernel runs."""
    assert "<kernel>" in _xml("tcg")
    clone = replace(SPEC, memory_file=Path("/t/memory"), state=Path("/t/state"))
    assert "<kernel>" not in _xml("tcg", clone)


def test_emulated_processors_lack_what_is_slow_in_software() -> None:
    """Mitigations and instructions that copy byte by byte are left out under TCG, and only there."""
    emulated, native = _xml("tcg"), _xml("kvm")
    for word in ("mitigations=off", "name='erms'", "name='fsrm'"):
        assert word in emulated
        assert word not in native


def test_guests_under_kvm_get_neither_virtualization_nor_counters() -> None:
    """A hostile guest reaches neither KVM's nested part nor the processor's performance counters; TCG has neither."""
    emulated, native = _xml("tcg"), _xml("kvm")
    for word in (
        "<feature policy='disable' name='vmx'/>",
        "<feature policy='disable' name='svm'/>",
        "<pmu state='off'/>",
    ):
        assert word in native
        assert word not in emulated


@pytest.mark.parametrize("memory", [None, Path("/t/memory")])
def test_no_guests_memory_is_offered_to_page_merging(memory: Path | None) -> None:
    """Both the memory that libvirt asks for and a template's are kept out of it, on either accelerator."""
    accelerators: tuple[AcceleratorKind, ...] = ("kvm", "tcg")
    for accelerator in accelerators:
        xml = _xml(accelerator, replace(SPEC, memory_file=memory))
        assert "<nosharepages/>" in xml
        assert ("merge=off" in xml) is (memory is not None)
