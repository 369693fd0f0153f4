"""`sandbox top`: pools and VMs of this host, live. It only looks: at /proc, and at what pools write of themselves."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sandbox.cli.reporting import reporting
from sandbox.cli.screen import Screen
from sandbox.cli.streams import is_interactive
from sandbox.config import HostConfig
from sandbox.hypervisor.inventory import MachineRecord, OwnerRecord, owners
from sandbox.observe.status import PoolStatus, VMStatus, read_status
from sandbox.printable import printable

_ONCE_SECONDS = 0.5
_PLAIN_COLUMNS = 150
_KERNEL_STATES = {"T": "stopped", "Z": "dead"}
_FRAME_LINES = 4
_OTHER_LINES = 2  # at the top, and how many more there are
_LEAST_ROWS = 3
_POOL_COLUMNS = [
    *("pool", "owner", "ready", "leased", "starting", "ending", "waiting", "claims", "hits", "lost", "failed"),
]
_VM_COLUMNS = ["vm", "pid", "owner", "state", "template", "cpu", "memory", "age", "running", "started"]
_COUNTS = ("ready", "target", "leased", "starting", "ending", "waiting", "claimed", "hits", "lost", "failed_starts")


@dataclass(frozen=True, slots=True)
class VMRow:
    """One VM: what the kernel tells of its QEMU, and what its pool does, if there is one."""

    vm: str
    pid: int
    owner: int | None
    owner_is_alive: bool
    state: str
    """As its pool tells, or the kernel's where that matters more; empty where neither says anything."""
    cpu_percent: float
    """Of one processor, since the last look."""
    memory_mib: float | None
    seconds: float
    lease: str = ""
    template: str = ""
    running: int = 0
    executions: int = 0


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One pool, as it tells itself."""

    pool: str
    owner: int | None
    statistics: dict[str, int]


@dataclass(frozen=True, slots=True)
class View:
    """All that is shown at one instant."""

    pools: list[PoolRow]
    vms: list[VMRow]


@dataclass(slots=True)
class Observation:
    """Looks again and again, and tells processor time by the difference to the look before."""

    runtime: Path
    _before: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By process id: when it was seen, and its processor time then."""

    def look(self) -> View:
        now = time.monotonic()
        pools: list[PoolRow] = []
        vms: list[VMRow] = []
        seen: dict[int, tuple[float, float]] = {}
        for record in owners(self.runtime):
            told = read_status(record.run_directory) if record.is_alive else []
            pools += [PoolRow(status.pool, record.pid, status.statistics) for status in told]
            for machine in record.machines:
                seen[machine.pid] = (now, machine.cpu_seconds)
                vms.append(_row(record, machine, told, self._percent(machine, now)))
        self._before = seen
        return View(pools, sorted(vms, key=lambda row: (-row.cpu_percent, row.vm)))

    def _percent(self, machine: MachineRecord, now: float) -> float:
        """Return the load since the last look; for a process that is new, since its beginning."""
        then, used = self._before.get(machine.pid, (0.0, 0.0))
        if not then or used > machine.cpu_seconds:  # the latter: another process got the number
            then, used = now - max(machine.seconds, 0.01), 0.0
        return 100 * (machine.cpu_seconds - used) / max(now - then, 0.01)


@reporting
def run_top(*, once: bool, as_json: bool, interval: float) -> int:
    """Show it until `q` or Ctrl-C; without a terminal, with `once` or as JSON, show it one time."""
    observation = Observation(HostConfig().runtime_dir)
    if once or as_json or not is_interactive():
        observation.look()
        time.sleep(_ONCE_SECONDS)  # processor time is the difference of two looks
        view = observation.look()
        if as_json:
            print(json.dumps(asdict(view)))
        else:
            Console(width=None if os.isatty(1) else _PLAIN_COLUMNS).print(tables(view, rows=None))
        return 0
    with Screen() as screen:
        while True:
            view = observation.look()
            screen.show(lambda rows, view=view: tables(view, rows=rows))  # type: ignore[misc]
            if screen.wait_key(interval) in ("q", "Q", "\x03"):
                return 0


def _row(record: OwnerRecord, machine: MachineRecord, told: list[PoolStatus], percent: float) -> VMRow:
    known = next((status.vms[machine.name] for status in told if machine.name in status.vms), VMStatus(""))
    return VMRow(
        vm=machine.name,
        pid=machine.pid,
        owner=record.pid,
        owner_is_alive=record.is_alive,
        state=_KERNEL_STATES.get(machine.state, known.state),
        cpu_percent=round(percent, 1),
        memory_mib=None if machine.memory_mib is None else round(machine.memory_mib, 1),
        seconds=round(machine.seconds, 1),
        lease=known.lease,
        template=known.template,
        running=known.running,
        executions=known.executions,
    )


def tables(view: View, *, rows: int | None) -> Group:
    """Draw it, within so many lines of a terminal; None for as many as it takes."""
    return Group(_summary(view), *_pool_table(view), _vm_table(view, rows))


def _summary(view: View) -> Text:
    memory = sum(row.memory_mib or 0.0 for row in view.vms)
    cpu = sum(row.cpu_percent for row in view.vms)
    return Text(
        f"{len(view.vms)} VMs in {len(view.pools)} pools, {cpu:.0f} % of a processor, {memory:.0f} MiB", no_wrap=True
    )


def _pool_table(view: View) -> list[Table]:
    if not view.pools:
        return []
    table = Table(*_POOL_COLUMNS)
    for row in view.pools:
        count = {name: row.statistics.get(name, 0) for name in (*row.statistics, *_COUNTS)}
        hits = f"{100 * count['hits'] / count['claimed']:.0f} %" if count["claimed"] else ""
        ready = f"{count['ready']}/{count['target']}"
        numbers = [str(count[name]) for name in ("leased", "starting", "ending", "waiting", "claimed")]
        ends = [str(count[name]) for name in ("lost", "failed_starts")]
        table.add_row(Text(printable(row.pool)), str(row.owner or ""), ready, *numbers, hits, *ends)
    return [table]


def _vm_table(view: View, rows: int | None) -> Table:
    table = Table(*_VM_COLUMNS)
    above = _OTHER_LINES + _FRAME_LINES + (_FRAME_LINES + len(view.pools) if view.pools else 0)
    room = len(view.vms) if rows is None else max(_LEAST_ROWS, rows - above)
    for row in view.vms[:room]:
        memory = "" if row.memory_mib is None else f"{row.memory_mib:.0f} MiB"
        owner = f"{row.owner or 'unknown'}" + ("" if row.owner_is_alive else ", dead")
        words = [Text(printable(word)) for word in (row.state, row.template)]  # of another process: never as markup
        counts = (str(row.running), str(row.executions)) if row.state else ("", "")
        table.add_row(
            row.vm, str(row.pid), owner, *words, f"{row.cpu_percent:.0f} %", memory, _age(row.seconds), *counts
        )
    if len(view.vms) > room:
        table.caption = f"{len(view.vms) - room} more"
    return table


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds) // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
