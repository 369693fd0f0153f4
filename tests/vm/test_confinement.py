"""What contains QEMU, read from the living process and from QEMU itself; each layer with a process that lacks it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from sandbox.cold_boot import ColdBoot
from sandbox.config import HostConfig
from sandbox.hypervisor.confinement import DENIALS, DEVICES, Confinement, unexpected
from sandbox.hypervisor.domain_xml import domain_xml
from sandbox.hypervisor.facts import LOG_KIB
from sandbox.hypervisor.stream import Listener
from sandbox.image.store import ImageStore
from sandbox.template.template import Template
from sandbox.vm import VM

PROGRAMS = Path(__file__).parents[1] / "programs"
PAGE = Path(__file__).parents[2] / "docs" / "confinement.md"
EXTRA = {
    "virtio-net-pci": "<interface type='user'><model type='virtio'/></interface>",
    "virtio-rng-pci": "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
}


@pytest.fixture
def bare() -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU that somebody started without a thought."""
    command = ["qemu-system-x86_64", "-machine", "none", "-S", "-display", "none", "-monitor", "none"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while b"-machine" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            pass  # between fork and exec it is still ourselves
        try:
            yield process
        finally:
            process.kill()


def _opened_and_mapped(pid: int) -> tuple[set[str], list[tuple[str, str]]]:
    opened = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return opened, [(fields[1], fields[-1]) for fields in lines]


async def test_the_living_process_has_every_layer(template: Template, vm: VM) -> None:
    """Unprivileged, filtered, without capabilities, core dumps or defaults: so says the kernel."""
    seen = await anyio.to_thread.run_sync(Confinement.of, vm.pid)
    assert seen.faults() == []
    assert seen.denials == DENIALS
    assert seen.uid == (template.host.owner or (os.geteuid(), 0))[0] != 0
    assert seen.capabilities == 0
    assert seen.open_files is not None
    assert seen.open_files < 600


def test_a_process_without_the_layers_is_told(bare: subprocess.Popen[bytes]) -> None:
    """The control: each layer that is missing is named."""
    faults = "; ".join(Confinement.of(bare.pid).faults())
    for layer in ("seccomp", "privileges", "does not deny elevateprivileges, obsolete", "default devices"):
        assert layer in faults
    if os.geteuid() == 0:
        assert "runs as root" in faults
        assert "has capabilities" in faults


async def test_nothing_is_open_for_writing_but_its_log_and_pid_file(template: Template, vm: VM) -> None:
    """Root image and template are opened read-only, the template's memory is mapped privately."""
    seen = await anyio.to_thread.run_sync(Confinement.of, vm.pid)
    assert seen.writable_files is not None
    assert {Path(name).suffix for name in seen.writable_files} == {".log", ".pid"}
    assert all(name.startswith(f"{template.host.rundir.path}/") for name in seen.writable_files)
    opened, mapped = await anyio.to_thread.run_sync(_opened_and_mapped, vm.pid)
    assert {str(template.spec.root), str(template.spec.memory_file)} <= opened
    assert {mode[3] for mode, name in mapped if name == str(template.spec.memory_file)} == {"p"}


async def test_the_kernel_may_not_merge_a_guests_memory(template: Template) -> None:
    """A clone's private mapping and a booted machine's anonymous memory are both kept out of page merging."""
    image = await anyio.to_thread.run_sync(ImageStore(HostConfig().paths.images).find, "default")
    for source in (template, ColdBoot(template.host, image)):
        async with source.lease() as vm:
            seen = await anyio.to_thread.run_sync(Confinement.of, vm.pid)
            assert seen.is_mergeable is False
            assert [fault for fault in seen.faults() if "merge" in fault] == []


def test_memory_that_may_be_merged_is_seen() -> None:
    """The control: a QEMU as it comes offers its guest's memory, and that is named."""
    command = ["qemu-system-x86_64", "-nodefaults", "-S", "-display", "none", "-m", "64", "-qmp", "stdio"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith(b'{"QMP"'), "its machine is made by then"
            seen = Confinement.of(process.pid)
        finally:
            process.kill()
    assert seen.is_mergeable
    assert any("merge" in fault for fault in seen.faults())


def test_a_file_that_is_open_for_writing_is_seen(tmp_path: Path) -> None:
    """The control: a descriptor that may write is found, one that may not is not."""
    written, read = tmp_path / "written", tmp_path / "read"
    read.touch()
    with written.open("w"), read.open():
        files = Confinement.of(os.getpid()).writable_files
    assert files is not None
    assert str(written) in files
    assert str(read) not in files


async def test_qemu_reports_the_listed_devices_and_no_other(template: Template, vm: VM) -> None:
    """The list in the code is what QEMU says, and the page lists the same."""
    devices = await template.host.call(template.host.connection.devices, vm.name)
    assert unexpected(devices) == []
    if template.host.platform.accelerator == "tcg":
        assert {kind for kind in devices if not kind.endswith("-x86_64-cpu")} == set(DEVICES)
    page = PAGE.read_text()
    assert [kind for kind in DEVICES if f"`{kind}`" not in page] == []


@pytest.mark.parametrize("kind", EXTRA)
async def test_another_device_is_noticed(template: Template, kind: str) -> None:
    """The control: a network card or a source of randomness that somebody adds is not on the list."""
    host, name = template.host, f"sbx-{template.host.rundir.path.name}-{kind}"
    channel, console = host.rundir.path / "extra.sock", host.rundir.path / "extra.con"

    def look() -> list[str]:
        with ExitStack() as stack:
            for path in (channel, console):
                stack.enter_context(Listener(path, host.owner))
            uuid, genid = "c7a1f5be-3a6f-4b0e-9d62-6a9f5d3c1e01", "c7a1f5be-3a6f-4b0e-9d62-6a9f5d3c1e02"
            spec = replace(template.spec, memory_file=None, state=None)
            xml = domain_xml(spec, host.platform, name=name, uuid=uuid, genid=genid, channel=channel, console=console)
            xml = xml.replace("<memballoon", f"{EXTRA[kind]}<memballoon")
            host.starter.launch(name, xml, spec, host.platform)
            try:
                return unexpected(host.connection.devices(name))
            finally:
                host.starter.end(name, None)

    assert kind in await host.call(look)


async def test_the_kernel_kills_a_vm_before_the_process_that_serves_it(vm: VM) -> None:
    """When the host's memory is at an end, the application survives its VMs."""
    ours, theirs = (Path(f"/proc/{pid}/oom_score_adj") for pid in (os.getpid(), vm.pid))
    scores = [int(await anyio.Path(path).read_text()) for path in (ours, theirs)]
    assert scores[1] == min(1000, scores[0] + 200)


MISUSES = 20_000
"""Of a device, in each of which QEMU prints a line of 77 bytes."""


async def _misuse(vm: VM, log_file: Path) -> int:
    """Return the size of QEMU's log after a guest has had it complain; the guest must outlive that."""
    await vm.write_file("/tmp/misuse.py", (PROGRAMS / "misuse_device.py").read_bytes(), user="root")
    result = await vm.exec(["python3", "/tmp/misuse.py", str(MISUSES)], user="root", timeout=60)
    assert result.check().text == "begins\nends\n"
    return (await anyio.Path(log_file).stat()).st_size


async def test_what_qemu_says_of_a_misused_device_is_cut(template: Template, caplog: pytest.LogCaptureFixture) -> None:
    """Root in a guest cannot fill the host's disk by way of QEMU's messages, and a guest that tries is named."""
    async with template.lease() as vm:
        size = await _misuse(vm, template.host.starter._log_file(vm.name))
    assert 1024 < size <= LOG_KIB << 10
    with anyio.fail_after(5):  # libvirt tells of the end in a thread of its own
        while not [record for record in caplog.records if "vm_filled_its_log" in record.getMessage()]:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    assert any(vm.name in record.getMessage() for record in caplog.records)


@pytest.mark.usefixtures("template")
def test_without_the_cut_the_log_grows() -> None:
    """The control: the same guest under a QEMU without the limit writes more than a megabyte."""
    command = [sys.executable, str(PROGRAMS / "host_without_log_bound.py"), str(MISUSES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) > 1 << 20
