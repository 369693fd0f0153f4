"""The hypervisor of this process: starts machines, off the event loop and with deadlines."""

from __future__ import annotations

import atexit
import os
import pwd
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from anyio.to_thread import run_sync

from sandbox.config import HostConfig
from sandbox.errors import ConfigError, HostResources, HypervisorError, SandboxError
from sandbox.hypervisor import threads
from sandbox.hypervisor.admission import Admission
from sandbox.hypervisor.connection import Connection, embedded_root, is_begun
from sandbox.hypervisor.console import Console
from sandbox.hypervisor.facts import HostFacts, launcher, load_facts
from sandbox.hypervisor.groups import Groups, reap_left_over
from sandbox.hypervisor.handover import Handover
from sandbox.hypervisor.machine import Machine
from sandbox.hypervisor.resources import raise_descriptor_limit
from sandbox.hypervisor.rundir import LOCK_FILE, RunDirectory, check_length, reap
from sandbox.hypervisor.spec import AcceleratorKind, MachineSpec, Platform
from sandbox.hypervisor.starter import Started, Starter, kill_by_name
from sandbox.hypervisor.stream import SocketStream
from sandbox.hypervisor.undertaker import Undertaker
from sandbox.inherited import check_not_forked
from sandbox.paths import make_directory
from sandbox.stored import refused
from sandbox.trace.stage import stage

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_shared: dict[str, Hypervisor] = {}
"""By the URI of its connection."""
_shared_lock = threading.Lock()
_used_by: int | None = None
"""The process that uses libvirt. A child that it forks cannot: libvirt's threads and the lock above stay behind."""


class Hypervisor:
    """One libvirt connection and one run directory, shared by everything in this process, open until it exits."""

    def __init__(self, config: HostConfig) -> None:
        """Open the connection. Blocks: use `connect`."""
        self.config = config
        self._is_embedded = config.uri.startswith("qemu:///embed")
        check_length(config.paths.runtime, is_embedded=self._is_embedded)
        data = config.paths.data
        self._directory = directory = (data / "host").resolve()  # libvirt remembers QEMU by its path
        try:
            make_directory(data)
            self.facts: HostFacts = load_facts(directory)
            accelerator = self.facts.accelerator(config.accelerator)
            self.platform = _platform(self.facts, accelerator, directory, is_embedded=self._is_embedded)
        except OSError as error:
            raise HypervisorError(f"what is known of this host cannot be kept: {refused(error, data)}") from error
        self.facts.check_isolation(config.require_isolation, accelerator)
        self.facts.announce(config.accelerator, accelerator)
        raise_descriptor_limit()
        account = pwd.getpwnam(self.facts.user) if self.facts.user else None
        self.owner = (account.pw_uid, account.pw_gid) if account else None
        self._process = os.getpid()
        self.rundir = _run_directory(config)
        try:
            with ExitStack() as stack:
                self._open(config, stack)
                stack.pop_all()
        except BaseException as error:
            _keep_or_remove(self.rundir)
            if isinstance(error, OSError) and not isinstance(error, SandboxError):
                raise HypervisorError(f"libvirt cannot be prepared: {refused(error, directory)}") from error
            raise
        self.undertaker = Undertaker(self.rundir.path, LOCK_FILE)
        self._numbers = count(1)

    def _open(self, config: HostConfig, stack: ExitStack) -> None:
        """Open all that can be closed again first, and libvirt, whose driver can be started once only, last."""
        reap(config.paths.runtime)
        if not self._is_embedded and (asked := config.limits_asked):
            raise ConfigError(
                f"{' and '.join(asked)} cannot be had with {config.uri}: a daemon's QEMU is the daemon's to limit; "
                "use the default connection, or do not ask for it"
            )
        groups = Groups.open(self.rundir.path, config.cgroup if self._is_embedded else "off", config.cpu_limit)
        reap_left_over(config.paths.runtime, groups.places.parents.values())
        self.admission = Admission(config, self.rundir.path.name)
        stack.callback(self.admission.close)
        cache = self._directory / f"libvirt-{self.facts.emulator_id}-{self.platform.accelerator}"
        root, emulator = self.rundir.path / "l", self.platform.emulator
        self.connection = Connection.open(config.uri, root, cache, emulator, self.facts.user)
        self.platform = replace(self.platform, libvirt=self.connection.version)
        parts = (self.connection, self.rundir, groups, self.admission)
        self.starter = Starter(
            *parts,
            owner=self.owner,
            cpu_limit=config.cpu_limit,
            nice=config.nice,
            must_yield="nice" in config.limits_asked,
        )

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
        with _shared_lock:
            host = _shared.get(config.uri)
            if host is None:
                host = _shared[config.uri] = cls._opened(config)
                atexit.register(host.close)
            elif other := host.config.differs_in(config):
                raise ConfigError(
                    f"this process already uses libvirt with another {', '.join(other)}; use the same HostConfig "
                    "everywhere, or another process"
                )
            else:
                host.facts.check_isolation(config.require_isolation, host.platform.accelerator)
            return host

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

        Blocks: for a few calls of `stat` when nothing has changed, for some seconds when QEMU was replaced. If
        this fails, all stays as it was.
        """
        try:
            facts = load_facts(self._directory)
            platform = _platform(facts, self.platform.accelerator, self._directory, is_embedded=self._is_embedded)
            self.connection.learn(platform.emulator)
        except OSError as error:
            raise HypervisorError(f"this host cannot be looked at: {refused(error, self._directory)}") from error
        self.platform = replace(platform, libvirt=self.connection.version)
        self.facts = facts  # last: a start in another thread is refused until it has the platform of these
        return self.platform

    def close(self) -> None:
        """Give the connection and the run directory back. Called at exit; ends every VM that is left.

        At the exit of a child that was forked, all of them are its parent's, and nothing happens.
        """
        if os.getpid() != self._process:
            return
        self.connection.close()
        self.rundir.remove()  # ends every QEMU first
        self.groups.close()  # which the directory lists, unless somebody else has removed it
        self.undertaker.close()
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
        number = next(self._numbers)
        name = f"sbx-{self.rundir.path.name}-{number}"
        handover: Handover[Started] = Handover()
        try:
            with stage("start the machine"):
                process, sock, console = await self.call(
                    self._start_blocking, name, spec, reserve_mib, handover, number
                )
        except HostResources:  # it never began, or has cleared up itself
            raise
        except BaseException:
            if (started := handover.abandon()) is not None:  # it came up while we were turning away
                threads.soon(self.starter.end, name, *started)
            else:  # its thread may hang in libvirt, which waits for a stopped QEMU without end, but not for a dead one
                threads.soon(kill_by_name, name)
            raise
        return Machine(self, name, process, SocketStream(sock), Console(console))

    def _start_blocking(
        self, name: str, spec: MachineSpec, reserve_mib: int, handover: Handover[Started], number: int
    ) -> Started:
        with stage("in the worker thread"):
            if number > 1:  # a VM that starts is paused, too; a command with one VM shall not pay for more than that
                self.undertaker.attend()
            if spec.state is not None and not self.facts.is_current():  # QEMU checks next to nothing of a saved state
                raise HypervisorError(
                    "QEMU was replaced since this process looked at it; the saved state is not of this one"
                )
            return self.starter.start(name, spec, self.platform, reserve_mib, handover)

    async def pause(self, name: str) -> None:
        """Stop a VM's processors. From now on it ends with this process even if this one is killed."""
        await self.call(self._attended, self.connection.pause, name)

    async def save(self, name: str, state: Path) -> None:
        """Stop a VM for good and write its device state to `state`."""
        await self.call(self._attended, self.connection.save, name, state)

    def _attended(self, act: Callable[[*Ts], None], *arguments: *Ts) -> None:
        self.undertaker.attend()
        act(*arguments)

    def forget_blocking(self, name: str) -> None:
        """Give back what the host keeps for a VM whose QEMU is dead: its control group, its promised memory."""
        if os.getpid() == self._process:
            self.starter.forget(name)


_spare: RunDirectory | None = None
"""The run directory in which libvirt's driver was started when something else failed: it can have no other."""


def _run_directory(config: HostConfig) -> RunDirectory:
    """Return a fresh run directory, or that in which libvirt runs already after an attempt that failed."""
    global _spare  # noqa: PLW0603 - one for the process, as libvirt's driver is
    spare, _spare = _spare, None
    if spare is None:
        return RunDirectory.create(config.paths.runtime)
    if spare.path.parent != config.paths.runtime:
        _spare = spare
        raise ConfigError(
            f"libvirt runs in {spare.path.parent} since this process first tried to open it, and cannot move to "
            f"{config.paths.runtime}; use that directory again, or another process"
        )
    return spare


def _keep_or_remove(rundir: RunDirectory) -> None:
    """Remove a run directory after a failure, unless libvirt's driver runs in it: then keep it for the next attempt."""
    global _spare  # noqa: PLW0603 - see above
    root = embedded_root()
    if root is not None and root.parent == rundir.path:
        _spare = rundir
        atexit.register(rundir.remove)
    else:
        rundir.remove()


def _platform(facts: HostFacts, accelerator: AcceleratorKind, directory: Path, *, is_embedded: bool = True) -> Platform:
    """Return the host's side of machines; make the launcher of their QEMU.

    A daemon bounds the logs of its QEMU itself, and may be allowed to start nothing else. Under TCG it must all the
    same: see `launcher`.
    """
    is_kvm = accelerator == "kvm"
    return Platform(
        emulator=launcher(facts, accelerator, directory) if is_embedded or not is_kvm else facts.emulator,
        qemu_version=facts.qemu_version,
        machine_type=facts.machine_type,
        accelerator=accelerator,
        cpu=facts.cpu if is_kvm else f"max of QEMU {facts.qemu_version}",
    )
