"""Anomalies: applies the rules to a pool's events and to its VMs' processor time, tells, and kills where asked to."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from sandbox.errors import ConfigError
from sandbox.event import EventKind, LifeEvent, Observer
from sandbox.handle import Handle
from sandbox.observe.rules import Anomaly, Rule, SampleRule, default_rules
from sandbox.proc import proc_text

_TICK = os.sysconf("SC_CLK_TCK")


class Anomalies(Handle):
    """An observer of one pool that tells what its rules find as further events, of the kind `ANOMALY`.

        rules = [RestoreDrift(), CpuStorm(seconds=30, kill=True)]
        async with VMPool(config, observers=[Anomalies(rules), audit, metrics]) as pool: ...

    `did` is `warned`; or `killed`, if the rule has `kill`: then the VM is destroyed, its lease ends, and whoever waits
    for an execution gets `GuestLost`; or `gone`, if the VM ended before that. While the pool is open, a thread reads
    each QEMU's processor time from the host's kernel every `interval` seconds; not of VMs that were there before this
    was added with `pool.observe`.
    """

    def __init__(self, rules: Iterable[Rule] | None = None, *, interval: float = 1.0) -> None:
        if not interval > 0:
            raise ConfigError(f"interval is {interval:g} s; give a positive number of seconds")
        self.rules = tuple(default_rules() if rules is None else rules)
        self._sampled = [rule for rule in self.rules if isinstance(rule, SampleRule)]
        self._interval = interval
        self._say: Observer | None = None
        self._end_vm: Callable[[str], bool] = lambda _: False
        self._pool = ""
        self._vms: dict[str, _Qemu] = {}
        self._is_sampling = False
        self._over = threading.Event()

    def __repr__(self) -> str:
        return f"<Anomalies {len(self.rules)} rules, {len(self._vms)} VMs>"

    def join_pool(self, pool: str, say: Observer, end_vm: Callable[[str], bool]) -> None:
        """Called by the pool."""
        if self._say is not None:
            raise ConfigError("these Anomalies observe a pool already; each pool needs its own")
        self._pool, self._say, self._end_vm = pool, say, end_vm

    def __call__(self, event: LifeEvent) -> None:
        if event.kind is EventKind.ANOMALY:
            return
        if self._sampled and not self._is_sampling:
            self._is_sampling = True
            arguments = (asyncio.get_running_loop(),)
            threading.Thread(target=self._sample, args=arguments, name="sandbox-anomalies", daemon=True).start()
        if event.kind is EventKind.POOL_CLOSED:
            self._over.set()
        elif event.kind is EventKind.VM_STARTED:
            self._enter(event)
        elif event.kind is EventKind.VM_DESTROYED and event.vm in self._vms:
            self._vms.pop(event.vm).close()
        now = time.monotonic()
        self._act(found for rule in self.rules for found in rule.see(event, now))

    def _enter(self, event: LifeEvent) -> None:
        pid = event.fields.get("pid")
        qemu = _Qemu.open(pid) if isinstance(pid, int) and pid > 0 else None
        if qemu is not None:
            self._vms[event.vm] = qemu

    def _act(self, findings: Iterable[Anomaly]) -> None:
        for found in findings:
            did = "warned"
            if found.kill:
                did = "killed" if self._end_vm(found.vm) else "gone"
            if self._say is not None:
                fields = {"rule": found.rule, "said": found.said, "did": did}
                self._say(
                    LifeEvent(EventKind.ANOMALY, self._pool, found.template, found.vm, found.lease, fields=fields)
                )

    def _sample(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read, in a thread of its own, and hand what was read to the loop."""
        while not self._over.wait(self._interval):
            samples = [(vm, used) for vm, qemu in list(self._vms.items()) if (used := qemu.cpu_seconds()) is not None]
            with suppress(RuntimeError):  # the loop was closed under a pool that was not
                loop.call_soon_threadsafe(self._on_samples, samples, time.monotonic())
            if loop.is_closed():
                return

    def _on_samples(self, samples: list[tuple[str, float]], now: float) -> None:
        for rule in self._sampled:
            for vm, used in samples:
                if vm in self._vms:
                    self._act(rule.sample(vm, used, now))


class _Qemu:
    """One process, held by a pidfd since its VM was known to live: its number cannot become another's unnoticed."""

    def __init__(self, pid: int, fd: int) -> None:
        self._pid = pid
        self._fd = fd
        self._lock = threading.Lock()

    @classmethod
    def open(cls, pid: int) -> _Qemu | None:
        try:
            return cls(pid, os.pidfd_open(pid))
        except OSError:  # it has just ended
            return None

    def cpu_seconds(self) -> float | None:
        """Return the processor time that it has used; None when it has ended."""
        try:
            fields = proc_text(Path(f"/proc/{self._pid}/stat")).rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / _TICK if self._is_alive else None

    @property
    def _is_alive(self) -> bool:
        """Whether it is; asked after something was read by its number, it says that this was no other process."""
        with self._lock:
            if self._fd < 0:
                return False
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            return not poll.poll(0)

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
