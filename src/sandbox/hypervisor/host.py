"""The hypervisor of this process: starts machines, off the event loop and with deadlines."""

from __future__ import annotations

import atexit
import pwd
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import anyio
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync

from sandbox.config import HostConfig
from sandbox.errors import ConfigError, HostResources, HypervisorError, SandboxError
from sandbox.hypervisor.admission import Admission
from sandbox.hypervisor.connection import Connection
from sandbox.hypervisor.console import Console
from sandbox.hypervisor.domain_xml import domain_xml
from sandbox.hypervisor.facts import HostFacts, load_facts, tcg_launcher
from sandbox.hypervisor.groups import Groups, caps, reap_left_over
from sandbox.hypervisor.handover import Handover
from sandbox.hypervisor.machine import Machine
from sandbox.hypervisor.midwife import Midwife
from sandbox.hypervisor.process import Process
from sandbox.hypervisor.rundir import RunDirectory, reap
from sandbox.hypervisor.spec import AcceleratorKind, MachineSpec, Platform
from sandbox.hypervisor.start_log import start_log
from sandbox.hypervisor.stream import Listener, SocketStream, peer_pid
from sandbox.log import log
from sandbox.paths import make_directory
from sandbox.trace.stage import stage

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Started = tuple[Process, socket.socket, socket.socket]
"""A process, the host's end of its channel, and that of its console."""

CALL_SECONDS = 30.0
ACCEPT_SECONDS = 5.0
THREADS = 32
_threads: RunVar[anyio.CapacityLimiter] = RunVar("sandbox_hypervisor_threads")
_shared: dict[tuple[object, ...], Hypervisor] = {}
_shared_lock = threading.Lock()


class Hypervisor:
    """One libvirt connection and one run directory, shared by everything in this process, open until it exits."""

    def __init__(self, config: HostConfig) -> None:
        """Open the connection. Blocks: use `connect`."""
        data = config.paths.data
        try:
            make_directory(data)
        except OSError as error:
            raise HypervisorError(
                f"cannot make {data}: {error.strerror}; set SANDBOX_DATA_DIR to a directory of yours"
            ) from error
        self._directory = directory = (data / "host").resolve()  # libvirt remembers QEMU by its path
        self.facts: HostFacts = load_facts(directory)
        accelerator = self.facts.accelerator(config.accelerator)
        self.platform = _platform(self.facts, accelerator, directory)
        account = pwd.getpwnam(self.facts.user) if self.facts.user else None
        self.owner = (account.pw_uid, account.pw_gid) if account else None
        self.rundir = RunDirectory.create(config.paths.runtime)
        reap(config.paths.runtime)
        self._cpu_limit = config.cpu_limit
        wanted = config.cgroup if config.uri.startswith("qemu:///embed") else "off"
        self.groups = Groups.open(self.rundir.path, wanted, config.cpu_limit)
        reap_left_over(config.paths.runtime, self.groups.places.parents.values())
        try:
            cache = directory / f"libvirt-{self.facts.emulator_id}-{accelerator}"
            root, emulator = self.rundir.path / "l", self.platform.emulator
            self.connection = Connection.open(config.uri, root, cache, emulator, self.facts.user)
            self.admission = Admission(config, self.rundir.path.name)
        except BaseException:
            self.rundir.remove()
            raise
        self._numbers = count(1)

    def __repr__(self) -> str:
        return f"<Hypervisor {self.platform.accelerator} {self.rundir.path}>"

    @classmethod
    async def connect(cls, config: HostConfig) -> Hypervisor:
        """Return this process's hypervisor for `config`, opened on first use; never blocks the event loop."""
        return await run_sync(cls.connect_blocking, config, limiter=_limiter())

    @classmethod
    def connect_blocking(cls, config: HostConfig) -> Hypervisor:
        places = (config.data_dir, config.runtime_dir, config.admission_dir, config.cgroup)
        bounds = (config.memory_overcommit, config.memory_pressure_max, config.cpu_limit)
        key = (config.uri, config.accelerator, *places, *bounds)
        with _shared_lock:
            if key not in _shared:
                if any(config.uri == other[0] for other in _shared):
                    raise ConfigError(
                        "this process already uses libvirt with other directories, limits or another accelerator; "
                        "use the same HostConfig everywhere, or another process"
                    )
                _shared[key] = host = cls(config)
                atexit.register(host.close)
            return _shared[key]

    def renew(self) -> Platform:
        """Look at the host again and have later starts use what is there now; the accelerator stays.

        Blocks: for a few calls of `stat` when nothing has changed, for a second when QEMU was replaced.
        """
        self.facts = load_facts(self._directory)
        self.platform = _platform(self.facts, self.platform.accelerator, self._directory)
        return self.platform

    def close(self) -> None:
        """Give the connection and the run directory back. Called at exit; ends every VM that is left."""
        self.connection.close()
        self.rundir.remove()  # ends every QEMU first
        self.admission.close()

    async def call(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run a blocking function in a worker thread.

        A cancelled caller still waits for the thread, so that ownership of what it makes is never in doubt; a thread
        that exceeds the deadline is given up and `HypervisorError` raised.
        """
        with anyio.CancelScope(shield=True), anyio.move_on_after(CALL_SECONDS):
            return await run_sync(function, *arguments, limiter=_limiter(), abandon_on_cancel=True)
        name = getattr(function, "__name__", "call")
        raise HypervisorError(f"libvirt did not answer `{name}` within {CALL_SECONDS:g} s; is its daemon hanging?")

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
        except BaseException:
            if (started := handover.abandon()) is not None:  # it came up while we were turning away
                threading.Thread(target=self._end_blocking, args=(name, *started), daemon=True).start()
            else:  # its thread may hang in libvirt, which waits for a stopped QEMU without end, but not for a dead one
                threading.Thread(target=_kill_blocking, args=(name,), daemon=True).start()
            raise
        return Machine(self, name, process, SocketStream(sock), Console(console))

    def _start_blocking(self, name: str, spec: MachineSpec, reserve_mib: int, handover: Handover[Started]) -> Started:
        """Do all that blocks in one thread, and end what was started if nobody takes it."""
        with stage("in the worker thread"):
            return self._admit_and_bring_up(name, spec, reserve_mib, handover)

    def _admit_and_bring_up(
        self, name: str, spec: MachineSpec, reserve_mib: int, handover: Handover[Started]
    ) -> Started:
        if spec.state is not None and not self.facts.is_current():  # QEMU checks next to nothing of a saved state
            raise HypervisorError(
                "QEMU was replaced since this process looked at it; the saved state is not of this one"
            )
        try:
            with stage("admit it to the host"):
                self.admission.admit(name, spec.memory_mib, reserve_mib)
            return self._bring_up(name, spec, handover)
        except BaseException as error:
            self.forget_blocking(name)
            if isinstance(error, OSError) and not isinstance(error, SandboxError):
                raise _host_lacks(error) from error
            raise

    def _bring_up(self, name: str, spec: MachineSpec, handover: Handover[Started]) -> Started:
        with ExitStack() as stack:
            try:
                listener = stack.enter_context(Listener(self.rundir.path / f"{name}.sock", self.owner))
                console_listener = stack.enter_context(Listener(self.rundir.path / f"{name}.con", self.owner))
                trace = None
                if self.connection.is_embedded:  # a daemon's QEMU cannot write to our directory
                    log_file = self.rundir.path / f"{name}.trace"
                    trace = stack.enter_context(start_log(log_file, self.owner, self._pid_file(name)))
            except OSError as error:
                raise _host_lacks(error) from error
            xml = domain_xml(
                spec,
                self.platform,
                name=name,
                uuid=str(uuid.uuid4()),
                genid=str(uuid.uuid4()),
                channel=listener.path,
                console=console_listener.path,
                trace=trace,
            )
            self._launch(name, xml, spec)
            sock = console = process = None
            try:
                with stage("take its channel"):
                    sock = listener.accept(ACCEPT_SECONDS)
                    console = console_listener.accept(ACCEPT_SECONDS)
                    process = Process.open(peer_pid(sock), name)
                if process is None:
                    raise HypervisorError(
                        f"QEMU of {name} ended as soon as it had started; `-vv` shows libvirt's messages"
                    )
                handover.offer((process, sock, console))
            except BaseException as error:
                self._end_blocking(name, process, sock, console)
                if isinstance(error, OSError):
                    raise HypervisorError(f"QEMU of {name} did not connect its channel: {error}") from error
                raise
        return process, sock, console

    def _launch(self, name: str, xml: str, spec: MachineSpec) -> None:
        """Have libvirt start the domain, in a control group where there can be one."""
        if not self.connection.is_embedded:  # the daemon's QEMU is the daemon's to confine
            self.connection.start(name, xml, spec.state, self._log_file(name))
            return
        with stage("make the control group"):
            group = self.groups.make(name, caps(spec, self.platform, self._cpu_limit))
        with Midwife(self._pid_file(name), name, group).at_work() as midwife:
            self.connection.start(name, xml, spec.state, self._log_file(name), midwife.wait_confined)

    def forget_blocking(self, name: str) -> None:
        """Give back what the host keeps for a VM whose QEMU is dead: its control group, its promised memory."""
        self.groups.remove(name)
        self.admission.release(name)

    def _end_blocking(self, name: str, process: Process | None, *sockets: socket.socket | None) -> None:
        """End whatever exists under this name."""
        for sock in sockets:
            if sock is not None:
                sock.close()
        # By our own hand first: libvirt waits half a minute for a zombie that only we, its parent, can reap.
        for left in [process] if process is not None else Process.find(f"guest={name},"):
            left.kill()
            left.wait_dead_blocking(1.0)
            left.close()
        with suppress(HypervisorError):
            self.connection.destroy(name)
        self.forget_blocking(name)

    def _pid_file(self, name: str) -> Path:
        return self.rundir.path / "l" / "run" / "qemu" / f"{name}.pid"

    def _log_file(self, name: str) -> Path:
        return self.rundir.path / "l" / "log" / "qemu" / f"{name}.log"


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


def _host_lacks(error: OSError) -> HostResources:
    """Return what to raise when the host's own calls fail, for want of descriptors above all."""
    return HostResources(f"no room for another VM: {error.strerror}; `ulimit -n` tells the limit of descriptors")


def _kill_blocking(name: str) -> None:
    """Kill what runs under this name, if anything; whoever waits for it in libvirt then clears it away."""
    try:
        found = Process.find(f"guest={name},")
    except OSError as error:  # no descriptor left: then none was left for a QEMU either
        log.warning("given_up_start_not_looked_for", vm=name, error=str(error))
        return
    for process in found:
        process.kill()
        process.wait_dead_blocking(1.0)
        process.close()


def _limiter() -> anyio.CapacityLimiter:
    """Threads of our own, so that a hanging libvirt cannot starve the application's."""
    try:
        return _threads.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(THREADS)
        _threads.set(limiter)
        return limiter
