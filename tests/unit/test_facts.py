"""What is kept of a look at the host: a stand-in for QEMU says how KVM is."""

from __future__ import annotations

import logging
import os
import re
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sandbox.errors import ConfigError
from sandbox.hypervisor import facts, host, kvm
from sandbox.hypervisor.facts import HostFacts, load_facts
from sandbox.hypervisor.spec import AcceleratorKind
from sandbox.template.manifest import Requirement

EMULATOR = """#!/bin/sh
case $1 in
--version) echo "QEMU emulator version 10.0.2" ;;
-machine) [ "$2" = help ] && echo "pc-q35-10.0 (alias of pc-q35-10.0)" && exit
echo probe >> {probes}
{answer}
esac
"""
RUNS = "exit 85"
REFUSES = "echo '-accel kvm: failed to initialize kvm: Permission denied' >&2; exit 1"
HAS_NO_MEMORY = "echo '-accel kvm: failed to initialize kvm: Cannot allocate memory' >&2; exit 1"
HANGS = "exec tail -f /dev/null"
IS_STUCK = "echo 'KVM internal error. Suberror: 1' >&2; exec tail -f /dev/null"
READS_ITS_ROM = """
while [ "$1" != -bios ]; do shift; done
cat "$2" > /dev/null && exit 85
"""
NEEDS_A_GROUP = f"id -G | grep -qw 4711 && {RUNS}; {REFUSES}"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root's QEMU runs as another user, anybody else's does not")


class Host:
    """A directory for facts, and a QEMU in it that any user may run."""

    def __init__(self, root: Path) -> None:
        self.facts, self._bin, self._probes = root / "host", root / "bin", root / "probes"
        self.facts.mkdir()
        self._bin.mkdir()
        self._probes.touch()
        for path in (root, self.facts, self._bin):
            path.chmod(0o755)
        self._probes.chmod(0o666)
        self.path = f"{self._bin}:{os.environ['PATH']}"

    @property
    def probes(self) -> int:
        return len(self._probes.read_text().splitlines())

    def becomes(self, answer: str) -> None:
        """Have KVM answer otherwise from now on, behind the same file."""
        emulator = self._bin / "qemu-system-x86_64"
        emulator.write_text(EMULATOR.format(probes=self._probes, answer=answer).ljust(2000))
        emulator.chmod(0o755)
        os.utime(emulator, (0, 0))


@pytest.fixture
def the_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host with a KVM device, of which nothing is known."""
    with tempfile.TemporaryDirectory() as name:  # unlike pytest's directories, others can get this far
        root = Path(name)
        monkeypatch.setattr(kvm, "KVM", root / "kvm")
        (root / "kvm").touch()
        the_host = Host(root)
        monkeypatch.setenv("PATH", the_host.path)
        yield the_host


@pytest.fixture
def load(the_host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[[], HostFacts]:
    """Look at the host as a process does that has just been started."""

    def load() -> HostFacts:
        monkeypatch.setattr(facts, "_unkept", {})
        return load_facts(the_host.facts)

    return load


@pytest.mark.parametrize("answer", [RUNS, REFUSES])
def test_a_verdict_that_lasts_is_kept(the_host: Host, load: Callable[[], HostFacts], answer: str) -> None:
    """What KVM itself has said for good is asked once by all processes of this boot."""
    the_host.becomes(answer)
    assert [load().kvm_works for _ in range(2)] == [answer is RUNS] * 2
    assert the_host.probes == 1


@pytest.mark.parametrize("answer", [HAS_NO_MEMORY, HANGS])
def test_a_verdict_of_a_bad_moment_is_kept_for_minutes(
    the_host: Host, load: Callable[[], HostFacts], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """The process that met it keeps to it; others look again when it is old, and find that KVM works."""
    the_host.becomes(answer)
    with monkeypatch.context() as patched:
        patched.setattr(kvm, "_PROBE_SECONDS", 1.0)
        assert not load().kvm_works
    the_host.becomes(RUNS)
    kept = the_host.facts / f"host-{os.geteuid()}.json"
    _age(kept, 610)
    assert not load_facts(the_host.facts).kvm_works
    _age(kept, 590)
    assert not load().kvm_works
    assert the_host.probes == 1
    _age(kept, 610)
    assert load().kvm_works
    assert the_host.probes == 2


def _age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_kvm_that_gives_up_its_vms_is_remembered(
    the_host: Host, load: Callable[[], HostFacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU said why nothing was executed, so no further process waits for a time-out."""
    monkeypatch.setattr(kvm, "_PROBE_SECONDS", 1.0)
    the_host.becomes(IS_STUCK)
    assert [load().kvm_works for _ in range(2)] == [False, False]
    assert the_host.probes == 1


def test_kvm_that_is_there_and_not_used_is_a_warning(
    the_host: Host, load: Callable[[], HostFacts], caplog: pytest.LogCaptureFixture
) -> None:
    """Each process that takes emulation for it says so and why, also when others found it out; `tcg` was a choice."""
    the_host.becomes(REFUSES)
    with caplog.at_level(logging.WARNING, "sandbox"):
        for _ in range(2):
            facts = load()
            assert facts.accelerator() == "tcg"
            facts.announce("auto", "tcg")
    assert ["Permission denied" in record.getMessage() for record in caplog.records] == [True, True]
    words = caplog.records[0].__dict__["in_words"]
    assert re.fullmatch("software emulation, no security boundary: .*Permission denied; see `sandbox doctor`", words)
    assert the_host.probes == 1
    caplog.clear()
    load().announce("tcg", "tcg")
    (the_host.facts / f"host-{os.geteuid()}.json").unlink()
    the_host.becomes(RUNS)
    assert load().accelerator() == "kvm"
    load().announce("auto", "kvm")
    assert caplog.records == []


def test_isolation_that_is_required_is_had_or_refused(the_host: Host, load: Callable[[], HostFacts]) -> None:
    """Where VMs would be emulated, the error has what was seen of KVM; nothing is asked of who requires nothing."""
    the_host.becomes(REFUSES)
    refused = load()
    refused.check_isolation(None, "tcg")
    with pytest.raises(ConfigError, match=r"isolation by kvm is required.*Permission denied"):
        refused.check_isolation("kvm", "tcg")
    the_host.becomes(RUNS)
    (the_host.facts / f"host-{os.geteuid()}.json").unlink()
    load().check_isolation("kvm", "kvm")
    with pytest.raises(ConfigError, match="isolation by kvm"):
        load().check_isolation("kvm", "tcg")  # KVM works, and was not wanted


@needs_root
def test_the_probe_can_be_read_by_qemus_user_wherever_temporary_files_lie(
    the_host: Host, load: Callable[[], HostFacts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's temporary directory may be closed to all others; KVM works all the same."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    the_host.becomes(READS_ITS_ROM)
    assert load().kvm_verdict == "a test VM ran under KVM"


@needs_root
def test_a_group_for_qemus_user_is_noticed(
    the_host: Host, load: Callable[[], HostFacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is forgotten as soon as that user, and not only our own, is in another group."""
    the_host.becomes(NEEDS_A_GROUP)
    assert not load().kvm_works
    members = os.getgrouplist
    monkeypatch.setattr(os, "getgrouplist", lambda user, group: [*members(user, group), 4711])
    assert load().kvm_works


def test_a_device_that_is_only_touched_is_the_same(the_host: Host, load: Callable[[], HostFacts]) -> None:
    """udev touches the device at each VM's start; an access list that changes is noticed."""
    the_host.becomes(RUNS)
    load()
    kvm.KVM.chmod(kvm.KVM.stat().st_mode)
    os.utime(kvm.KVM)
    load()
    assert the_host.probes == 1
    entries = ((1, 6, -1), (2, 6, 4711), (4, 4, -1), (16, 6, -1), (32, 4, -1))
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(kvm.KVM, "system.posix_acl_access", access)
    except OSError as error:
        pytest.skip(f"no access lists here: {error}")
    load()
    assert the_host.probes == 2


def test_a_probe_whose_status_is_lost_counts_by_what_it_printed(the_host: Host, load: Callable[[], HostFacts]) -> None:
    """A process that was started to ignore its children's ends is told status 0 of each."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        the_host.becomes("printf '*'; exit 85")
        assert load().kvm_works
    finally:
        signal.signal(signal.SIGCHLD, before)


def _key(facts: HostFacts, accelerator: AcceleratorKind, directory: Path) -> str:
    return Requirement.of("image", 256, 1, host._platform(facts, accelerator, directory)).key


def _boots_another_kernel(_modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="99.0"))


def _allows_nested_guests(modules: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / "kvm_intel/parameters/nested").write_text("Y\n")


def _ignores_unknown_registers(modules: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / "kvm/parameters/ignore_msrs").write_text("Y\n")


@pytest.mark.parametrize("change", [_boots_another_kernel, _allows_nested_guests, _ignores_unknown_registers])
def test_kernel_and_kvm_settings_are_part_of_the_key_under_kvm_only(
    the_host: Host,
    load: Callable[[], HostFacts],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    """They decide what a guest under KVM sees of the processor; an emulated processor is QEMU's own."""
    the_host.becomes(RUNS)
    monkeypatch.setattr(kvm, "_MODULES", tmp_path)
    for module, name in (("kvm_intel", "nested"), ("kvm", "ignore_msrs")):
        (tmp_path / module / "parameters").mkdir(parents=True)
        (tmp_path / module / "parameters" / name).write_text("N\n")
    before, again = load(), load()
    change(tmp_path, monkeypatch)
    if change is _boots_another_kernel:  # facts are of one boot
        (the_host.facts / f"host-{os.geteuid()}.json").unlink()
    after = load()
    same = {kind: _key(before, kind, the_host.facts) == _key(after, kind, the_host.facts) for kind in ("kvm", "tcg")}
    assert same == {"kvm": False, "tcg": True}
    assert _key(before, "kvm", the_host.facts) == _key(again, "kvm", the_host.facts)


def test_settings_that_cannot_be_read_are_no_error(
    the_host: Host, load: Callable[[], HostFacts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host without `/sys` has a key, too."""
    the_host.becomes(RUNS)
    monkeypatch.setattr(kvm, "_MODULES", tmp_path / "missing")
    assert load().cpu.endswith(" | nested=? ept=? npt=? ignore_msrs=?")
