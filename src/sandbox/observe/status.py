"""What a pool tells other processes of itself: a small file in its run directory, for `sandbox top`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sandbox.event import EventKind, LifeEvent
from sandbox.log import log

_SECONDS = 1.0
_VM = re.compile(r"sbx-([0-9a-f]{8})-\d+")
_LIMIT = 4 * 1024 * 1024
_MOST = 1 << 53
_READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # whatever lies there, it must not hold us up
_STATES = {
    EventKind.VM_STARTED: "ready",
    EventKind.VM_PAUSED: "paused",
    EventKind.VM_WOKEN: "ready",
    EventKind.LEASE_BEGAN: "leased",
    EventKind.LEASE_ENDED: "ending",
}


@dataclass(slots=True)
class VMStatus:
    """One VM as its pool sees it."""

    state: str
    template: str = ""
    lease: str = ""
    running: int = 0
    """Programs that run in it."""
    executions: int = 0
    """Programs that were started in it."""


_FIELDS = [field.name for field in fields(VMStatus)]


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """One pool as it sees itself: its statistics by name, and its VMs."""

    pool: str
    statistics: dict[str, int]
    vms: dict[str, VMStatus]


class StatusFile:
    """An observer of one pool that writes `pool-ID.json`, mode 0600, when something has changed, once a second at most.

    The file is replaced whole, by a thread. It goes when the pool closes, and with the run directory in any case.
    Where it cannot be written, nothing else suffers.
    """

    def __init__(self, pool: str, runtime: Path, statistics: Callable[[], Any]) -> None:
        """`statistics` returns a dataclass of numbers; it is called in the event loop's thread."""
        self._pool = pool
        self._runtime = runtime
        self._statistics = statistics
        self._vms: dict[str, VMStatus] = {}
        self._path: Path | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last = -_SECONDS
        self._writing = threading.Lock()
        self._is_over = False
        self._is_told = False

    def __call__(self, event: LifeEvent) -> None:
        self._note(event)
        if self._path is None and (match := _VM.fullmatch(event.vm)):
            self._path = self._runtime / match[1] / f"pool-{self._pool}.json"
        if self._path is None or self._is_over:
            return
        loop = asyncio.get_running_loop()
        if event.kind is EventKind.POOL_CLOSED:
            self._is_over = True
            if self._timer is not None:
                self._timer.cancel()
            loop.run_in_executor(None, self._remove, self._path)
        elif self._timer is None:
            self._timer = loop.call_at(max(loop.time(), self._last + _SECONDS), self._publish, self._path)

    def _note(self, event: LifeEvent) -> None:
        if event.kind is EventKind.VM_STARTED:
            self._vms[event.vm] = VMStatus("ready", event.template)
        elif event.kind is EventKind.VM_DESTROYED:
            self._vms.pop(event.vm, None)
        if (vm := self._vms.get(event.vm)) is None:
            return
        vm.state = _STATES.get(event.kind, vm.state)
        vm.lease = event.lease
        if event.kind is EventKind.EXECUTION_STARTED:
            vm.running, vm.executions = vm.running + 1, vm.executions + 1
        elif event.kind is EventKind.EXECUTION_ENDED:
            vm.running -= 1

    def _publish(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        self._timer, self._last = None, loop.time()
        vms = {name: {field: getattr(vm, field) for field in _FIELDS} for name, vm in self._vms.items()}
        document: dict[str, object] = {"pool": self._pool, "statistics": asdict(self._statistics()), "vms": vms}
        try:
            loop.run_in_executor(None, self._write, path, document)
        except RuntimeError as error:  # the host has no thread for it: the next event has it written
            log.debug("status_not_written", path=str(path), error=str(error))

    def _write(self, path: Path, document: dict[str, object]) -> None:
        fresh = path.with_suffix(".new")
        try:
            with self._writing:
                if self._is_over:
                    return
                file = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                with os.fdopen(file, "w") as stream:
                    stream.write(json.dumps(document))
                fresh.replace(path)
                self._is_told = False
        except OSError as error:
            say = log.debug if self._is_told else log.warning
            say("status_not_written", path=str(path), error=str(error), consequence="`sandbox top` shows an old one")
            self._is_told = True

    def _remove(self, path: Path) -> None:
        with self._writing, suppress(OSError):
            path.unlink(missing_ok=True)


def read_status(run_directory: Path) -> list[PoolStatus]:
    """Return what the pools of the process that owns this directory tell; what is not understood is left out.

    The files are taken for data of another process: nothing in them has been checked but its type.
    """
    found = []
    for path in sorted(run_directory.glob("pool-*.json")):
        try:
            with os.fdopen(os.open(path, _READING), "rb") as stream:
                found.append(_parse(json.loads(stream.read(_LIMIT))))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return found


def _count(number: object) -> int:
    if not isinstance(number, int) or abs(number) >= _MOST:
        raise TypeError("what is counted is a number that can be")
    return number


def _parse(document: Any) -> PoolStatus:
    vms = {str(name): VMStatus(**vm) for name, vm in document["vms"].items()}
    for vm in vms.values():
        if not (isinstance(vm.state, str) and isinstance(vm.lease, str) and isinstance(vm.template, str)):
            raise TypeError("a VM's names are strings")
        vm.running, vm.executions = _count(vm.running), _count(vm.executions)
    numbers = {str(name): _count(number) for name, number in document["statistics"].items()}
    return PoolStatus(str(document["pool"]), numbers, vms)
