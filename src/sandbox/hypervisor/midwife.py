"""Watch over a QEMU process while libvirt starts it, before anybody holds its pidfd."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.errors import HypervisorError
from sandbox.hypervisor.cgroup import Group
from sandbox.hypervisor.priority import lower
from sandbox.hypervisor.process import Process, reap_zombie
from sandbox.log import log

_FIND_SECONDS = 0.002
"""Until it yields, a QEMU that starts takes its share from one that a caller waits for."""
_LOOK_SECONDS = 0.01
_CONFINED_SECONDS, _ASKED_SECONDS = 1.0, 5.0
"""How long a guest waits for its limits; the second for those without which it is not let run."""


class Midwife:
    """Finds the process as soon as it exists, confines it, has it yield to others, and reaps it should it die."""

    def __init__(
        self,
        pid_file: Path,
        name: str,
        group: Group | None,
        nice: int,
        *,
        must_confine: bool = False,
        must_yield: bool = False,
    ) -> None:
        self._pid_file = pid_file
        self._name = name
        self._group = group
        self._nice = nice
        self._must_confine = must_confine
        self._must_yield = must_yield and nice > 0
        self._outside: str | None = None
        """Why the process is not in its group."""
        self._refused: list[str] = []
        self._is_over = threading.Event()
        self._is_set = threading.Event()

    def wait_confined(self) -> None:
        """Return when the process is in its control group and yields: the guest must not run before.

        Moving a process can take the kernel some 10 ms, which pass while QEMU starts. Raises `HypervisorError` when a
        limit that was asked for does not hold; what was not asked for is a warning.
        """
        if self._group is None and not self._must_yield:
            return
        seconds = _ASKED_SECONDS if self._must_confine or self._must_yield else _CONFINED_SECONDS
        outside = self._outside if self._is_set.wait(seconds) else "its process was not found in time"
        if outside is not None and self._group is not None:
            if self._must_confine:
                raise HypervisorError(f"its QEMU is not in its control group, whose limits were asked for: {outside}")
            log.warning("vm_not_confined", vm=self._name, reason=outside)
        refused = [outside] if outside is not None and self._group is None else self._refused
        if self._must_yield and (said := [reason for reason in refused if not reason.startswith("session")]):
            raise HypervisorError(
                f"its QEMU does not yield, as `nice` asks: {'; '.join(said)}; give this process CAP_SYS_NICE, or do "
                "not set `nice`"
            )

    @contextmanager
    def at_work(self) -> Iterator[Midwife]:
        """Watch for the length of the context.

        The process is our child, because we adopt orphans while it starts, and libvirt takes a zombie for a living
        process: a start that fails would take libvirt 30 s instead of 0.3 s. The pid is known from the file that
        libvirt writes, nowhere else.
        """
        watcher = threading.Thread(target=self._watch, name=f"midwife-{self._name}", daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            self._is_over.set()
            watcher.join()

    def _watch(self) -> None:
        process = None
        is_over = False
        while not is_over:  # a last look comes after the end, should the host have kept us from looking before
            is_over = self._is_over.wait(_FIND_SECONDS if process is None else _LOOK_SECONDS)
            if process is None:
                process = self._find()
                if process is not None:
                    self._confine(process)
                    self._lower(process)
                    self._is_set.set()
            elif not process.is_alive:
                process.reap()
            elif self._refused:
                self._lower(process)
        if process is not None:
            if self._refused and process.is_alive:
                log.info("vm_does_not_yield", vm=self._name, reason="; ".join(self._refused))
            process.close()

    def _find(self) -> Process | None:
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):  # not written yet
            return None
        process = Process.open(pid, self._name)
        if process is None:  # it died before we looked, and a zombie has no command line
            reap_zombie(pid)
        return process

    def _lower(self, process: Process) -> None:
        if self._nice:
            self._refused = lower(process, self._nice)

    def _confine(self, process: Process) -> None:
        if self._group is None:
            return
        try:
            self._group.enter(process.pid)
        except OSError as error:
            if process.is_alive:
                self._outside = str(error)
