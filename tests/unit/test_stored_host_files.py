"""Damaged files that are kept of this host, of its processes and of benchmarks: found out anew, or refused by name."""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from sandbox.bench.run import Run
from sandbox.errors import ConfigError
from sandbox.hypervisor import facts, inventory, rundir
from sandbox.hypervisor.facts import HostFacts
from sandbox.hypervisor.spec import AcceleratorKind
from sandbox.observe.status import read_status
from sandbox.stored import seal
from tests.damage import DAMAGE, damage, repair

KINDS = pytest.mark.parametrize("kind", DAMAGE)
FACTS = HostFacts("/q", "1-2", "10.0.2", "pc-q35-10.0", "cpu", True, "works", "boot", "kvm", "user")


@KINDS
def test_damaged_facts_are_found_out_anew(tmp_path: Path, kind: str) -> None:
    """None of them is believed, down to a bit."""
    path = tmp_path / "host-0.json"
    for seed in range(20):
        path.write_bytes(seal(asdict(FACTS)))
        assert facts._read(path) == FACTS
        damage(path, kind, seed)
        assert facts._read(path) in (None, FACTS)
        repair(path, b"")
    path.write_bytes(seal({**asdict(FACTS), "new": 1}))
    assert facts._read(path) is None


@KINDS
@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_a_damaged_launcher_is_written_anew(tmp_path: Path, accelerator: AcceleratorKind, kind: str) -> None:
    """It is what libvirt starts in QEMU's place; each accelerator has its own."""
    launcher = Path(facts.launcher(FACTS, accelerator, tmp_path))
    program = launcher.read_bytes()
    assert (b"accel=kvm" in program) is (accelerator == "tcg")
    damage(launcher, kind)
    if kind == "a directory":
        with pytest.raises(IsADirectoryError, match=f"qemu-{accelerator}"):
            facts.launcher(FACTS, accelerator, tmp_path)
        return
    assert facts.launcher(FACTS, accelerator, tmp_path) == str(launcher)
    assert (launcher.read_bytes(), launcher.stat().st_mode & 0o777) == (program, 0o755)


@KINDS
def test_a_damaged_status_shows_nothing(tmp_path: Path, kind: str) -> None:
    """Of a pool that tells rubbish, `sandbox top` shows what the kernel tells."""
    path = tmp_path / "pool-1.json"
    document = {"pool": "1", "statistics": {"ready": 1}, "vms": {"sbx-1": {"state": "ready", "running": 1}}}
    for seed in range(50):
        path.write_text(json.dumps(document))
        assert len(read_status(tmp_path)) == 1
        damage(path, kind, seed)
        for status in read_status(tmp_path):
            assert all(abs(number) < 1 << 53 for number in status.statistics.values())
        repair(path, b"")
    for number in ("1e999", "NaN", "9" * 400, "true" * 2):
        path.write_text(json.dumps(document).replace('"ready": 1', f'"ready": {number}'))
        assert read_status(tmp_path) == []


@KINDS
@pytest.mark.parametrize("name", ["sandbox.lock", "cgroups"])
def test_a_damaged_run_directory_keeps_nobody_from_looking_or_starting(tmp_path: Path, name: str, kind: str) -> None:
    """What a dead process has left is cleared all the same; what is none of ours stays."""
    tmp_path.chmod(0o755)
    living, dead = tmp_path / "aaaaaaaa", tmp_path / "bbbbbbbb"
    for path in (living, dead):
        path.mkdir()
        (path / "sandbox.lock").write_text("4194303\n")
        (path / "cgroups").write_text(f"/sys/fs/cgroup/nowhere/{rundir.group_name(path)}\n")
    with (living / "sandbox.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in (living, dead):
            damage(path / name, kind)
        inventory.owners(tmp_path)
        inventory.leaks(tmp_path)
        is_ours = (dead / "sandbox.lock").is_file() and not (dead / "sandbox.lock").is_fifo()
        assert rundir.reap(tmp_path) == int(is_ours)
        assert dead.exists() is not is_ours
        assert living.exists()


@KINDS
def test_a_damaged_record_of_a_benchmark_is_refused(tmp_path: Path, kind: str) -> None:
    """By name, whatever it holds."""
    recorded = Path(__file__).parents[2] / "docs/evidence/gate-baseline.json"
    path = tmp_path / "recorded.json"
    for seed in range(10):
        path.write_bytes(recorded.read_bytes())
        damage(path, kind, seed)
        try:
            Run.load(path)
        except ConfigError as error:
            assert str(path) in str(error)  # noqa: PT017 - a flipped bit may change a number
        else:
            assert kind == "flipped"
        repair(path, b"")
