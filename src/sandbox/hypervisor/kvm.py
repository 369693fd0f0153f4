"""KVM on this host: who may use it, how it is set, and whether a VM was seen to run under it. Everything blocks."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

KVM = Path("/dev/kvm")
ABSENT = "absent"
_EXIT = 0x2A
PROBE_ROM = bytes([0xF4]) * 0xFFF0 + bytes([0xB0, _EXIT, 0xE6, 0xE9, 0xE6, 0xF4, 0xF4]) + bytes(9)
"""The reset vector lies 16 bytes before the end: mov al, 0x2a; out 0xe9, al; out 0xf4, al; hlt."""
_PROBE_SECONDS = 10.0
_REFUSED = tuple(
    f"failed to initialize kvm: {os.strerror(number)}" for number in (errno.EACCES, errno.ENODEV, errno.ENOENT)
)
_BROKEN = "KVM internal error"
_SETTINGS = ("nested", "ept", "npt", "ignore_msrs")
_MODULES = Path("/sys/module")


@dataclass(frozen=True)
class Verdict:
    """Whether KVM works, what was seen of it, and whether that would be seen again."""

    works: bool
    said: str
    is_lasting: bool


def kvm_id(user: str | None) -> str:
    """Return what changes whenever access to the KVM device does, or how KVM is set.

    These are the device's owner, mode and lists, and the groups of the user that QEMU will have.
    """
    try:
        stat = KVM.stat()
    except OSError:
        return ABSENT
    groups = os.getgroups() if user is None else os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    device = f"{stat.st_mode:o}-{stat.st_uid}-{stat.st_gid}-{_access_list()}"  # no time: udev touches it at each start
    return f"{device}-{sorted(groups)}-{kvm_settings()}"


def _access_list() -> str:
    try:
        return os.getxattr(KVM, "system.posix_acl_access").hex()
    except OSError:  # it has none, or the file system knows none
        return ""


def kvm_settings() -> str:
    """Return those settings of the kernel's modules that change what a guest sees of the host's processor."""
    return " ".join(f"{name}={_setting(name)}" for name in _SETTINGS)


def _setting(name: str) -> str:
    try:
        return ",".join(path.read_text().strip() for path in sorted(_MODULES.glob(f"kvm*/parameters/{name}"))) or "?"
    except OSError:
        return "?"


def probe_kvm(emulator: str, user: str | None, rom: Path) -> Verdict:
    """Run two instructions under KVM as the user that QEMU will have; return whether they ran, and what was seen.

    The device's existence proves nothing: it may be closed to that user, or its VMs may never execute anything. The
    instructions are in `rom`, which that user must be able to read. A failure lasts if KVM itself gave a reason for it
    that does not go away by waiting; a time-out or a lack of memory may be a busy host's.
    """
    if not KVM.exists():
        said = f"{KVM} does not exist (no hardware virtualization, or the kvm module is not loaded)"
        return Verdict(works=False, said=said, is_lasting=True)
    command = [emulator, "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "16", "-nodefaults"]
    command += ["-display", "none", "-bios", str(rom), "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    command += ["-chardev", "stdio,id=said", "-device", "isa-debugcon,iobase=0xe9,chardev=said"]
    account = pwd.getpwnam(user) if user else None
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PROBE_SECONDS,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if account else None,
        )
    except subprocess.TimeoutExpired as error:
        said = f"a test VM under KVM executed nothing within {_PROBE_SECONDS:g} s"
        return Verdict(works=False, said=said, is_lasting=_BROKEN.encode() in (error.stderr or b""))
    except OSError as error:
        said = f"{emulator} cannot be run as {user or 'this user'}: {error.strerror}"
        return Verdict(works=False, said=said, is_lasting=False)
    # The status is lost where this process was started to ignore the ends of its children; what was printed is not.
    if done.returncode == _EXIT << 1 | 1 or _EXIT in done.stdout:
        return Verdict(works=True, said="a test VM ran under KVM", is_lasting=True)
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line]
    said = (lines or [f"exit status {done.returncode}"])[-1].removeprefix("qemu-system-x86_64: ")
    return Verdict(works=False, said=f"a test VM under KVM did not run: {said}", is_lasting=said.endswith(_REFUSED))
