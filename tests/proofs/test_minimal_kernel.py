"""The minimal kernel boots every time: on the machine that the library uses, and on QEMU's smallest one."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from sandbox.cold_boot import ColdBoot
from sandbox.config import HostConfig
from sandbox.guest.identity import Identity
from sandbox.hypervisor.domain_xml import command_line
from sandbox.hypervisor.spec import AcceleratorKind
from sandbox.image.build import build_image, current_image
from sandbox.image.recipe import load_recipe
from sandbox.image.store import Image, ImageStore
from sandbox.log import log
from sandbox.template.template import Template
from sandbox.wire import GUEST_LIMITS, PORT_NAME, Decoder, Kind, encode

BOOTS = int(os.environ.get("SANDBOX_MINIMAL_BOOTS", "3"))
SECONDS = 60.0
pytestmark = pytest.mark.timeout(180 + 20 * BOOTS)


@pytest.fixture(scope="module")
def image() -> Image:
    """The default image on the minimal kernel."""
    recipe, store = load_recipe("default").with_kernel("minimal"), ImageStore(HostConfig().paths.images)
    if (found := current_image(recipe, store)) is not None:
        return found
    if "SANDBOX_MINIMAL_BOOTS" not in os.environ:
        pytest.skip("compiling the kernel takes minutes: run `sandbox image build --kernel minimal` before")
    return build_image(recipe, store, log.progress)


async def test_q35_boots_with_it_every_time(template: Template, image: Image) -> None:
    """Each boot ends with an agent that has proved its identity, and runs a program on this very kernel."""
    source = ColdBoot(template.host, image)
    for _ in range(BOOTS):
        async with source.lease() as vm:
            assert (await vm.run("import os; print(os.uname().release)")).text == f"{image.manifest.kernel}\n"


async def test_microvm_boots_with_it_every_time(template: Template, image: Image, tmp_path: Path) -> None:
    """Without ACPI and PCI too, which Debian's kernel cannot do without, the agent answers to its new identity."""
    emulator = template.host.facts.emulator
    for _ in range(BOOTS):
        await run_sync(_boot_microvm, emulator, template.host.platform.accelerator, image, tmp_path / "channel")


def _boot_microvm(emulator: str, accelerator: AcceleratorKind, image: Image, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(SECONDS)
        console = path.with_name("console")
        process = subprocess.Popen(_microvm(emulator, accelerator, image, path, console), stdin=subprocess.DEVNULL)
        try:
            channel, _ = listener.accept()
            with channel:
                channel.settimeout(SECONDS)
                _handshake(channel)
        except TimeoutError:
            pytest.fail(f"no answer; the console says: {console.read_text(errors='replace')}")
        finally:
            process.kill()
            process.wait()


def _microvm(emulator: str, accelerator: AcceleratorKind, image: Image, channel: Path, console: Path) -> list[str]:
    arguments = [emulator, "-machine", "microvm,acpi=off", "-accel", accelerator, "-m", "256", "-nodefaults"]
    arguments += ["-cpu", "host" if accelerator == "kvm" else "max", "-display", "none", "-no-user-config"]
    arguments += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", command_line(accelerator)]
    arguments += ["-drive", f"id=root,if=none,format=raw,readonly=on,file={image.root}"]
    arguments += ["-device", "virtio-blk-device,drive=root", "-device", "virtio-serial-device"]
    arguments += ["-chardev", f"socket,id=channel,path={channel}"]
    arguments += ["-device", f"virtserialport,chardev=channel,name={PORT_NAME}"]
    return [*arguments, "-serial", f"file:{console}"]


def _handshake(channel: socket.socket) -> None:
    identity = Identity(hostname="microvm")
    channel.sendall(encode(Kind.HELLO, identity.epoch, 0, identity.hello()))
    decoder = Decoder(GUEST_LIMITS)
    while not (frames := decoder.feed(channel.recv(65536))):
        pass
    identity.verify(frames[0].payload)
