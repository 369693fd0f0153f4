"""`sandbox ps`, `sandbox audit`, `sandbox reap`: what runs on this host, what belongs to nobody, and its end."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sandbox.cli.reporting import reporting
from sandbox.config import HostConfig
from sandbox.hypervisor.groups import reap_left_over
from sandbox.hypervisor.inventory import OwnerRecord, leaks, owners
from sandbox.hypervisor.rundir import reap
from sandbox.image.store import ImageStore
from sandbox.template.prune import left_over

_COLUMNS = ("vm", "pid", "owner", "state", "age", "cpu", "memory")


@reporting
def run_ps(*, as_json: bool) -> int:
    """Print every VM of ours on this host with its owner."""
    records = owners(HostConfig().runtime_dir)
    if as_json:
        print(json.dumps([asdict(record) for record in records], default=str, indent=1))
        return 0
    table = Table(*_COLUMNS)
    for record in records:
        for machine in record.machines:
            memory = "" if machine.memory_mib is None else f"{machine.memory_mib:.0f} MiB"
            times = f"{machine.seconds:.0f} s", f"{machine.cpu_seconds:.1f} s"
            table.add_row(machine.name, str(machine.pid), _owner(record), machine.state, *times, memory)
    Console(width=None if Console().is_terminal else 120).print(table)
    return 0


@reporting
def run_audit(*, as_json: bool) -> int:
    """Print all that exists with its owner, then what has none; exit with 1 if there is any."""
    config = HostConfig()
    records, found = owners(config.runtime_dir), find_leaks(config)
    if as_json:
        document = {"owners": [asdict(record) for record in records], "leaks": found}
        print(json.dumps(document, default=str, indent=1))
        return int(bool(found))
    for record in records:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(record.descriptors.items()))
        print(f"{record.run_directory}: {_owner(record)}; {counts or 'descriptors unknown'}")
        for machine in record.machines:
            print(f"  {machine.name}: QEMU process {machine.pid}, {machine.state}")
        for name in record.sockets:
            print(f"  {name}: socket of a VM that is being started")
    for line in found:
        print(f"LEAK {line}")
    print(f"{len(found)} leaks" if found else "no leaks")
    return int(bool(found))


def run_reap() -> int:
    """End and remove what dead processes left behind."""
    runtime = HostConfig().runtime_dir
    cleared = reap(runtime)
    if runtime.is_dir() and (groups := reap_left_over(runtime)):
        print(f"{groups} control groups without a run directory removed")
    print(f"{cleared} run directories of dead processes cleared")
    return 0


def find_leaks(config: HostConfig) -> list[str]:
    """Return one line for each process, directory and file that belongs to nobody."""
    templates = [f"{path}: left by a bake that was killed" for path in left_over(config.paths.templates)]
    builds = [f"{path}: left by a build that was killed" for path in _left_by_builds(config.paths.images)]
    return [*leaks(config.runtime_dir), *templates, *builds]


def _left_by_builds(images: Path) -> list[Path]:
    return ImageStore(images).left_over() if images.is_dir() else []


def _owner(record: OwnerRecord) -> str:
    if record.is_alive:
        return f"process {record.pid}"
    return f"process {record.pid or 'unknown'}, dead"
