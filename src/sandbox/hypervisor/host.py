"""The hypervisor of this process: starts machines, off the event loop and with deadlines."""

from __future__ import annotations

import atexit
import os
import pwd
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from anyio.to_thread import run_sync

from sandbox.config import HostConfig
from sandbox.errors import ConfigError, HostResources, HypervisorError, SandboxError
from sandbox.hypervisor import threads
from sandbox.hypervisor.admission import Admission
from sandbox.hypervisor.connection import Connection, is_begun
from sandbox.hypervisor.console import Console
from sandbox.hypervisor.facts import HostFacts, load_facts, tcg_launcher
from sandbox.hypervisor.groups import Groups, reap_left_over
from sandbox.hypervisor.handover import Handover
from sandbox.hypervisor.machine import Machine
from sandbox.hypervisor.rundir import RunDirectory, reap
from sandbox.hypervisor.spec import AcceleratorKind, MachineSpec, Platform
from sandbox.hypervisor.starter import Started, Starter, kill_by_name
from sandbox.hypervisor.stream import SocketStream
from sandbox.inherited import check_not_forked
from sandbox.paths import make_directory
from sandbox.stored import refused
from sandbox.trace.stage import stage

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_shared: dict[tuple[object, ...], Hypervisor] = {}
_shared_lock = threading.Lock()
_used_by: int | None = None
"""The process that uses libvirt. A child that it forks cannot: libvirt's threads and the lock above stay behind."""


class Hypervisor:
    """One libvirt connection and one run directory, shared by everything in this process, open until it exits."""

    def __init__(self, config: HostConfig) -> None:
        """Open the connection. Blocks: use `connect`."""
        data = config.paths.data
        self._directory = directory = (data / "host").resolve()  # libvirt remembers QEMU by its path
        try:
            make_directory(data)
            self.facts: HostFacts = load_facts(directory)
            accelerator = self.facts.accelerator(config.accelerator)
            self.platform = _platform(self.facts, accelerator, directory)
        except OSError as error:
            raise HypervisorError(f"what is known of this host cannot be kept: {refused(error, data)}") from error
        account = pwd.getpwnam(self.facts.user) if self.facts.user else None
        self.owner = (account.pw_uid, account.pw_gid) if account else None
        self._process = os.getpid()
        try:
            self.rundir = RunDirectory.create(config.paths.runtime)
        except OSError as error:
            said = refused(error, config.paths.runtime, "SANDBOX_RUNTIME_DIR")
            raise HypervisorError(f"a run directory cannot be made: {said}") from error
        try:
            reap(config.paths.runtime)
            wanted = config.cgroup if config.uri.startswith("qemu:///embed") else "off"
            groups = Groups.open(self.rundir.path, wanted, config.cpu_limit)
            reap_left_over(config.paths.runtime, groups.places.parents.values())
            cache = directory / f"libvirt-{self.facts.emulator_id}-{accelerator}"
            root, emulator = self.rundir.path / "l", self.platform.emulator
            self.connection = Connection.open(config.uri, root, cache, emulator, self.facts.user)
            self.platform = replace(self.platform, libvirt=self.connection.version)
            self.admission = Admission(config, self.rundir.path.name)
            parts = (self.connection, self.rundir, groups, self.admission)
            self.starter = Starter(*parts, owner=self.owner, cpu_limit=config.cpu_limit, nice=config.nice)
        except BaseException as error:
            self.rundir.remove()
            if isinstance(error, OSError) and not isinstance(error, SandboxError):
                raise HypervisorError(f"libvirt cannot be prepared: {refused(error, directory)}") from error
            raise
        self._numbers = count(1)

    def __repr__(self) -> str:
        return f"<Hypervisor {self.platform.accelerator} {self.rundir}>"

    @property
    def groups(self) -> Groups:
        """The control groups of its VMs."""
        return self.starter.groups

    @classmethod
    async def connect(cls, config: HostConfig) -> Hypervisor:
        """Return this process's hypervisor for `config`, opened on first use; never blocks the event loop.

        Raises `HypervisorError` in a child that was forked from a process which has one.
        """
        with threads.telling_shortage():
            return await run_sync(cls.connect_blocking, config, limiter=threads.limiter())

    @classmethod
    def connect_blocking(cls, config: HostConfig) -> Hypervisor:
        global _used_by  # noqa: PLW0603 - libvirt can be used by one process of a family
        _used_by = _used_by or os.getpid()
        check_not_forked(_used_by)
        places = (config.data_dir, config.runtime_dir, config.admission_dir, config.cgroup)
        bounds = (config.memory_overcommit, config.memory_pressure_max, config.cpu_limit, config.nice)
        key = (config.uri, config.accelerator, *places, *bounds)
        with _shared_lock:
            if key not in _shared:
                if any(config.uri == other[0] for other in _shared):
                    raise ConfigError(
                        "this process already uses libvirt with other directories, limits or another accelerator; "
                        "use the same HostConfig everywhere, or another process"
                    )
                _shared[key] = host = cls._opened(config)
                atexit.register(host.close)
            return _shared[key]

    @classmethod
    def _opened(cls, config: HostConfig) -> Hypervisor:
        global _used_by  # noqa: PLW0603 - see above
        try:
            return cls(config)
        except BaseException:
            if not is_begun():  # a child has nothing of libvirt's from us
                _used_by = None
            raise

    def renew(self) -> Platform:
        """Look at the host again and have later starts use what is there now; the accelerator stays.

        Blocks: for a few calls of `stat` when nothing has changed, for a second when QEMU was replaced.
        """
        try:
            self.facts = load_facts(self._directory)
            platform = _platform(self.facts, self.platform.accelerator, self._directory)
        except OSError as error:
            raise HypervisorError(f"this host cannot be looked at: {refused(error, self._directory)}") from error
        self.platform = replace(platform, libvirt=self.connection.version)
        return self.platform

    def close(self) -> None:
        """Give the connection and the run directory back. Called at exit; ends every VM that is left.

        At the exit of a child that was forked, all of them are its parent's, and nothing happens.
        """
        if os.getpid() != self._process:
            return
        self.connection.close()
        self.rundir.remove()  # ends every QEMU first
        self.admission.close()

    async def call(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run a blocking function in a worker thread, with a deadline; see `threads.call`."""
        check_not_forked(self._process)
        return await threads.call(function, *arguments)

    async def start(self, spec: MachineSpec, *, reserve_mib: int = 0) -> Machine:
        """Start a VM, or restore one when `spec.state` is given, and return it running with its channel connected.

        Raises `HostResources` when less than `reserve_mib` would stay available with the guest's memory full, and
        `HypervisorError` when libvirt or QEMU refuses. If this fails or is cancelled, no VM is left behind.
        """
        name = f"sbx-{self.rundir.path.name}-{next(self._numbers)}"
        handover: Handover[Started] = Handover()
        try:
            with stage("start the machine"):
                process, sock, console = await self.call(self._start_blocking, name, spec, reserve_mib, handover)
        except HostResources:  # it never began, or has cleared up itself
            raise
        except BaseException:
            if (started := handover.abandon()) is not None:  # it came up while we were turning away
                threads.soon(self.starter.end, name, *started)
            else:  # its thread may hang in libvirt, which waits for a stopped QEMU without end, but not for a dead one
                threads.soon(kill_by_name, name)
            raise
        return Machine(self, name, process, SocketStream(sock), Console(console))

    def _start_blocking(self, name: str, spec: MachineSpec, reserve_mib: int, handover: Handover[Started]) -> Started:
        with stage("in the worker thread"):
            if spec.state is not None and not self.facts.is_current():  # QEMU checks next to nothing of a saved state
                raise HypervisorError(
                    "QEMU was replaced since this process looked at it; the saved state is not of this one"
                )
            return self.starter.start(name, spec, self.platform, reserve_mib, handover)

    def forget_blocking(self, name: str) -> None:
        """Give back what the host keeps for a VM whose QEMU is dead: its control group, its promised memory."""
        if os.getpid() == self._process:
            self.starter.forget(name)


def _platform(facts: HostFacts, accelerator: AcceleratorKind, directory: Path) -> Platform:
    """Return the host's side of machines; make the launcher that TCG needs."""
    is_kvm = accelerator == "kvm"
    return Platform(
        emulator=facts.emulator if is_kvm else tcg_launcher(facts, directory),
        qemu_version=facts.qemu_version,
        machine_type=facts.machine_type,
        accelerator=accelerator,
        cpu=facts.cpu if is_kvm else f"max of QEMU {facts.qemu_version}",
    )
