"""What this host has to offer: QEMU, the machine type, a processor, and an accelerator that was seen to work."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox.errors import ConfigError, HypervisorError
from sandbox.hypervisor.spec import AcceleratorKind
from sandbox.paths import make_directory

KVM = Path("/dev/kvm")
_PROBE_SECONDS = 10.0
_PROBE_EXIT = 0x2A
_TCG_LAUNCHER = """\
#!/bin/sh
# Start QEMU as libvirt asks, but let its capability probe not see a KVM device that cannot be used.
for argument do
    shift
    case $argument in
    *,accel=kvm:tcg) argument=${{argument%kvm:tcg}}tcg ;;
    esac
    set -- "$@" "$argument"
done
exec {emulator} "$@"
"""


@dataclass(frozen=True)
class HostFacts:
    """Found once per boot and QEMU binary, then read from a small file."""

    emulator: str
    emulator_id: str
    qemu_version: str
    machine_type: str
    cpu: str
    kvm_works: bool
    kvm_verdict: str
    boot_id: str
    kvm_id: str
    user: str | None

    def accelerator(self, wanted: str = "auto") -> AcceleratorKind:
        """Return the accelerator to use; refuse KVM where it was seen not to work."""
        if wanted == "auto":
            return "kvm" if self.kvm_works else "tcg"
        if wanted == "kvm" and not self.kvm_works:
            raise ConfigError(f"KVM was asked for but does not work here: {self.kvm_verdict}; use accelerator='auto'")
        if wanted not in ("kvm", "tcg"):
            raise ConfigError(f"accelerator {wanted!r} is unknown; choose auto, kvm or tcg")
        return "kvm" if wanted == "kvm" else "tcg"

    def is_current(self) -> bool:
        """Return whether the QEMU binary is the one that was looked at. Blocks for one `stat`."""
        try:
            return _emulator_id(self.emulator) == self.emulator_id
        except FileNotFoundError:
            return False


def _emulator_id(emulator: str) -> str:
    stat = Path(emulator).stat()
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


def qemu_user() -> str | None:
    """Return the account that QEMU runs under when we are root, else None: it then runs as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("libvirt-qemu", "qemu"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise HypervisorError("there is no user libvirt-qemu to run QEMU as; run `sandbox setup`")


def load_facts(directory: Path) -> HostFacts:
    """Return the facts, from `directory` when they are of this boot and this QEMU, else found anew. Blocks."""
    emulator = shutil.which("qemu-system-x86_64")
    if emulator is None:
        raise HypervisorError("qemu-system-x86_64 is not installed; run `sandbox setup`")
    emulator_id = _emulator_id(emulator)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kvm_id = _kvm_id()
    cached = directory / f"host-{os.geteuid()}.json"
    try:
        facts = HostFacts(**json.loads(cached.read_text()))
        if (facts.emulator, facts.emulator_id, facts.boot_id, facts.kvm_id) == (emulator, emulator_id, boot_id, kvm_id):
            return facts
    except (OSError, ValueError, TypeError):
        pass  # none yet, or of another version of this program: find them anew
    facts = _find(emulator, emulator_id, boot_id, kvm_id)
    make_directory(directory)
    _write_atomically(cached, json.dumps(asdict(facts), indent=1))
    return facts


def tcg_launcher(facts: HostFacts, directory: Path) -> str:
    """Return an emulator path whose capability probe cannot see KVM.

    libvirt probes QEMU with rights that the domain will not have. Where /dev/kvm exists but is closed to the
    domain's user, its verdict contradicts itself and the probe (seconds) is repeated at every start.
    """
    path = directory / f"qemu-tcg-{facts.emulator_id}"
    if not path.exists():
        _write_atomically(path, _TCG_LAUNCHER.format(emulator=facts.emulator), mode=0o755)
    return str(path)


def _kvm_id() -> str:
    """Return what changes whenever access to the KVM device does: its owner, mode and lists, and our groups."""
    try:
        stat = KVM.stat()
    except OSError:
        return "absent"
    return f"{stat.st_mode:o}-{stat.st_uid}-{stat.st_gid}-{stat.st_ctime_ns}-{sorted(os.getgroups())}"


def _find(emulator: str, emulator_id: str, boot_id: str, kvm_id: str) -> HostFacts:
    version = _run([emulator, "--version"])
    match = re.search(r"version (\d+\.\d+\.\d+)", version)
    machine = re.search(r"\(alias of (pc-q35-[\w.]+)\)", _run([emulator, "-machine", "help"]))
    if match is None or machine is None:
        raise HypervisorError(f"{emulator} does not say its version or has no q35 machine; run `sandbox setup`")
    user = qemu_user()
    works, verdict = probe_kvm(emulator, user)
    return HostFacts(
        emulator=emulator,
        emulator_id=emulator_id,
        qemu_version=version.splitlines()[0].removeprefix("QEMU emulator version "),
        machine_type=machine[1],
        cpu=_host_cpu(),
        kvm_works=works,
        kvm_verdict=verdict,
        boot_id=boot_id,
        kvm_id=kvm_id,
        user=user,
    )


def probe_kvm(emulator: str, user: str | None) -> tuple[bool, str]:
    """Run two instructions under KVM as the user that QEMU will have; return whether they ran, and what was seen.

    The device's existence proves nothing: it may be closed to that user, or its VMs may never execute anything.
    """
    if not KVM.exists():
        return False, f"{KVM} does not exist (no hardware virtualization, or the kvm module is not loaded)"
    with tempfile.TemporaryDirectory(prefix="sandbox-kvm-") as directory:
        Path(directory).chmod(0o711)
        rom = Path(directory) / "probe.rom"
        # The reset vector lies 16 bytes before the end: mov al, 0x2a; out 0xf4, al; hlt.
        rom.write_bytes(bytes([0xF4]) * 0xFFF0 + bytes([0xB0, _PROBE_EXIT, 0xE6, 0xF4, 0xF4]) + bytes(11))
        rom.chmod(0o644)
        command = [emulator, "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "16", "-nodefaults"]
        command += ["-display", "none", "-bios", str(rom), "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        account = pwd.getpwnam(user) if user else None
        try:
            done = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=_PROBE_SECONDS,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if account else None,
            )
        except subprocess.TimeoutExpired:
            return False, f"a test VM under KVM executed nothing within {_PROBE_SECONDS:g} s"
        except OSError as error:
            return False, f"{emulator} cannot be run as {user or 'this user'}: {error.strerror}"
    if done.returncode == _PROBE_EXIT << 1 | 1:
        return True, "a test VM ran under KVM"
    said = next((line for line in reversed(done.stderr.splitlines()) if line), f"exit status {done.returncode}")
    return False, f"a test VM under KVM did not run: {said.removeprefix('qemu-system-x86_64: ')}"


def _host_cpu() -> str:
    wanted = ("model name", "microcode", "flags")
    text = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    return " | ".join(values.get(key, "?") for key in wanted)


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PROBE_SECONDS).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise HypervisorError(f"`{' '.join(command)}` failed: {error}; run `sandbox setup`") from error


def _write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
    Path(temporary).replace(path)
