"""A machine booted for one script and nothing else: what remains of a sandbox when it is made with QEMU by hand.

Kernel, modules and root file system are those of our image, so that the difference to a clone is the boot and the
snapshot, not the content. There is no agent: the script's output comes out of a serial port. Everything blocks.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from sandbox.hypervisor.domain_xml import command_line
from sandbox.hypervisor.spec import Platform
from sandbox.image.initramfs import cpio, file
from sandbox.image.store import Image

_SECONDS = 120.0
_SCRIPT = "script.py"
_INIT = f"""#!/bin/sh
mkdir -p /proc /sys /dev /lower /rw /new
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
mount -t erofs -o ro /dev/vda /lower && mount -t tmpfs rw /rw && mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /new
cp /{_SCRIPT} /new/tmp/{_SCRIPT}
/bin/busybox chroot /new /usr/bin/python3 /tmp/{_SCRIPT} >/dev/ttyS1 2>&1
poweroff -f
"""


class ColdQemu:
    """Boots an image with a bare command line of QEMU, for one script at a time."""

    def __init__(self, image: Image, platform: Platform, memory_mib: int, directory: Path) -> None:
        """`directory` takes the initramfs; it must outlive the last run."""
        self._image = image
        self._initrd = directory / "initrd"
        is_kvm = platform.accelerator == "kvm"
        self._command = [
            *(platform.emulator, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", platform.machine_type, "-accel", platform.accelerator),
            *("-cpu", "host" if is_kvm else "max", "-m", str(memory_mib), "-smp", "1"),
            *("-kernel", str(image.kernel), "-append", command_line(platform.accelerator)),
            *("-initrd", str(self._initrd)),
            *("-drive", f"file={str(image.root).replace(',', ',,')},format=raw,if=virtio,readonly=on"),
            *("-serial", "null", "-serial", "stdio"),  # the kernel speaks on the first one
        ]

    def run(self, code: str) -> str:
        """Return what the script printed, when the machine has powered itself off."""
        # The kernel unpacks archives that follow one another, and of two files with one name it keeps the latter.
        ours = cpio([file("init", _INIT.encode(), 0o755), file(_SCRIPT, code.encode())])
        self._initrd.write_bytes(self._image.initrd.read_bytes() + ours)
        done = subprocess.run(
            self._command, check=True, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
        )
        return done.stdout.decode(errors="replace").replace("\r\n", "\n")
