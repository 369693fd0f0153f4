"""What this host has to offer: QEMU, the machine type, a processor, and an accelerator that was seen to work."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox.errors import ConfigError, HypervisorError
from sandbox.hypervisor.kvm import ABSENT, PROBE_ROM, kvm_id, kvm_settings, probe_kvm
from sandbox.hypervisor.spec import AcceleratorKind
from sandbox.log import log
from sandbox.paths import make_directory
from sandbox.stored import read_stored, seal, unseal, write_stored

_LOOK_SECONDS = 10.0
_MOMENT_SECONDS = 600.0
"""For so long a verdict that may be a bad moment's is kept: to look again may take the whole time of a probe."""
LOG_KIB, _FILE_KIB = 128, 16 * 1024
"""How large a file of a clone's QEMU may get: its log is all that it writes. One that boots may write a saved state."""
_SOONER = 200
"""By so much more than this process, in thousandths of the host's memory, QEMU weighs when the kernel lacks memory."""
_LAUNCHER = """\
#!/bin/sh
# Start QEMU as libvirt asks, with a bound on its log: a guest can have QEMU complain without end.
# And when the host's memory is at an end, a VM shall go before the application that started it.
size={file_kib}
for argument do
    shift
    case $argument in
    -incoming) size={log_kib} ;;{cases}
    esac
    set -- "$@" "$argument"
done
score=/proc/self/oom_score_adj
{{ read -r ours < $score && echo $((ours > 1000 - {sooner} ? 1000 : ours + {sooner})) > $score; }} 2>/dev/null
trap '' XFSZ  # what does not fit any more is lost, and nothing else happens
ulimit -f $((2 * size)) 2>/dev/null  # in units of 512 bytes; a lower limit that we run under holds
exec {emulator} "$@"
"""
_WITHOUT_KVM = """
    *,accel=kvm:tcg) argument=${argument%kvm:tcg}tcg ;;"""
"""libvirt's capability probe must not see a KVM device that cannot be used.

libvirt probes QEMU with rights that the domain will not have. Where /dev/kvm exists but is closed to the domain's user,
its verdict contradicts itself and the probe (seconds) is repeated at every start.
"""


@dataclass(frozen=True)
class HostFacts:
    """Found once per boot, QEMU binary and way to KVM, then read from a small file."""

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
    is_lasting: bool = True
    """False when the verdict about KVM may be a bad moment's."""

    def accelerator(self, wanted: str = "auto") -> AcceleratorKind:
        """Return the accelerator to use; refuse KVM where it was seen not to work."""
        if wanted == "auto":
            return "kvm" if self.kvm_works else "tcg"
        if wanted == "kvm" and not self.kvm_works:
            raise ConfigError(f"KVM was asked for but does not work here: {self.kvm_verdict}; use accelerator='auto'")
        if wanted not in ("kvm", "tcg"):
            raise ConfigError(f"accelerator {wanted!r} is unknown; choose auto, kvm or tcg")
        return "kvm" if wanted == "kvm" else "tcg"

    def check_isolation(self, required: str | None, accelerator: AcceleratorKind) -> None:
        """Raise `ConfigError` unless VMs under this accelerator are isolated as required."""
        if required is not None and accelerator != required:
            raise ConfigError(
                f"isolation by {required} is required, and VMs are emulated here ({accelerator}), which is no "
                f"security boundary; of KVM was seen: {self.kvm_verdict}"
            )

    def announce(self, wanted: str, accelerator: AcceleratorKind) -> None:
        """Say, once in each process that opens the hypervisor, that `auto` has taken software emulation."""
        if wanted != "auto" or accelerator != "tcg":
            return
        say = log.info if self.kvm_id == ABSENT else log.warning
        say(
            "kvm_does_not_work",
            reason=self.kvm_verdict,
            consequence="`auto` takes software emulation, which is no security boundary",
            remedy="`sandbox doctor`",
            in_words=f"software emulation, no security boundary: {self.kvm_verdict}; see `sandbox doctor`",
        )

    @property
    def circumstances(self) -> tuple[object, ...]:
        """What must be as it was for the facts to hold."""
        return self.emulator, self.emulator_id, self.boot_id, self.kvm_id, self.user

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


_unkept: dict[Path, HostFacts] = {}
"""Facts whose verdict may be a moment's: this process keeps to them, as to its accelerator."""


def load_facts(directory: Path) -> HostFacts:
    """Return the facts, from `directory` when their circumstances are today's, else found anew. Blocks."""
    emulator = shutil.which("qemu-system-x86_64")
    if emulator is None:
        raise HypervisorError("qemu-system-x86_64 is not installed; run `sandbox setup`")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    user = qemu_user()
    circumstances = (emulator, _emulator_id(emulator), boot_id, kvm_id(user), user)
    cached = directory / f"host-{os.geteuid()}.json"
    for facts in (_unkept.get(cached), _read(cached)):
        if facts is not None and facts.circumstances == circumstances:
            return facts
    make_directory(directory)
    facts = _find(directory, *circumstances)
    if not facts.is_lasting:
        _unkept[cached] = facts
    write_stored(cached, seal(asdict(facts)))
    return facts


def _read(cached: Path) -> HostFacts | None:
    """Return what was found before; None if that is nothing, too old, damaged, or of another version of sandbox."""
    try:
        facts = HostFacts(**unseal(read_stored(cached)))
        is_fresh = facts.is_lasting or time.time() - cached.stat().st_mtime < _MOMENT_SECONDS
        return facts if is_fresh else None
    except (OSError, ValueError, TypeError):
        return None


def launcher(facts: HostFacts, accelerator: AcceleratorKind, directory: Path) -> str:
    """Return the path of a script that starts QEMU: with a bound on what it writes, under TCG without a view of KVM.

    What QEMU prints beyond the bound is lost. The script also has the kernel kill QEMU sooner than this process when
    memory is at an end. Unlike what is set from outside, both need no privilege and hold from the first instruction.
    """
    program = _LAUNCHER.format(
        emulator=shlex.quote(facts.emulator),
        cases=_WITHOUT_KVM if accelerator == "tcg" else "",
        log_kib=LOG_KIB,
        sooner=_SOONER,
        file_kib=_FILE_KIB,
    ).encode()
    path = directory / f"qemu-{accelerator}-{facts.emulator_id}-{zlib.crc32(program):08x}"
    if not _holds(path, program):
        write_stored(path, program, mode=0o755)
    return str(path)


def _holds(path: Path, content: bytes) -> bool:
    """Return whether a program is there as it should be: what is damaged is written anew."""
    try:
        return read_stored(path) == content and path.stat().st_mode & 0o777 == 0o755
    except OSError:
        return False


def _find(directory: Path, emulator: str, emulator_id: str, boot_id: str, access: str, user: str | None) -> HostFacts:
    version = _run([emulator, "--version"])
    match = re.search(r"version (\d+\.\d+\.\d+)", version)
    machine = re.search(r"\(alias of (pc-q35-[\w.]+)\)", _run([emulator, "-machine", "help"]))
    if match is None or machine is None:
        raise HypervisorError(f"{emulator} does not say its version or has no q35 machine; run `sandbox setup`")
    rom = directory / f"probe-{os.geteuid()}.rom"
    write_stored(rom, PROBE_ROM)
    verdict = probe_kvm(emulator, user, rom)
    return HostFacts(
        emulator=emulator,
        emulator_id=emulator_id,
        qemu_version=version.splitlines()[0].removeprefix("QEMU emulator version "),
        machine_type=machine[1],
        cpu=_host_cpu(),
        kvm_works=verdict.works,
        kvm_verdict=verdict.said,
        boot_id=boot_id,
        kvm_id=access,
        user=user,
        is_lasting=verdict.is_lasting,
    )


def _host_cpu() -> str:
    """Return what decides which processor a guest under KVM sees: the host's, its kernel and KVM's settings."""
    wanted = ("model name", "microcode", "flags")
    text = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    return " | ".join([*(values.get(key, "?") for key in wanted), os.uname().release, kvm_settings()])


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LOOK_SECONDS).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise HypervisorError(f"`{' '.join(command)}` failed: {error}; run `sandbox setup`") from error
