"""Brings machines up, each in one worker thread from begin to end, and ends what nobody takes."""

from __future__ import annotations

import errno
import resource
import socket
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

from sandbox.errors import HostResources, HypervisorError, SandboxError
from sandbox.hypervisor.admission import Admission
from sandbox.hypervisor.connection import Connection
from sandbox.hypervisor.domain_xml import domain_xml
from sandbox.hypervisor.groups import Groups, caps
from sandbox.hypervisor.handover import Handover
from sandbox.hypervisor.midwife import Midwife
from sandbox.hypervisor.process import Process
from sandbox.hypervisor.rundir import RunDirectory
from sandbox.hypervisor.spec import MachineSpec, Platform
from sandbox.hypervisor.start_log import start_log
from sandbox.hypervisor.stream import Listener, peer_pid
from sandbox.log import log
from sandbox.trace.stage import stage

Started = tuple[Process, socket.socket, socket.socket]
"""A process, the host's end of its channel, and that of its console."""
ACCEPT_SECONDS = 5.0


class Starter:
    """All of it blocks. Whoever gets a machine from it owns that machine; what it does not hand over it ends itself."""

    def __init__(
        self,
        connection: Connection,
        rundir: RunDirectory,
        groups: Groups,
        admission: Admission,
        *,
        owner: tuple[int, int] | None,
        cpu_limit: float | None,
        nice: int,
        must_yield: bool,
    ) -> None:
        self._connection = connection
        self._rundir = rundir
        self.groups = groups
        self._admission = admission
        self._owner = owner
        self._cpu_limit = cpu_limit
        self._nice = nice
        self._must_yield = must_yield

    def start(
        self, name: str, spec: MachineSpec, platform: Platform, reserve_mib: int, handover: Handover[Started]
    ) -> Started:
        """Admit the machine to the host and bring it up; leave nothing of it behind if either fails."""
        try:
            with stage("admit it to the host"):
                self._admission.admit(name, spec.memory_mib, reserve_mib)
            return self._bring_up(name, spec, platform, handover)
        except BaseException as error:
            self.forget(name)
            if isinstance(error, OSError) and not isinstance(error, SandboxError):
                raise _failure(error, self._rundir.path) from error
            raise

    def _bring_up(self, name: str, spec: MachineSpec, platform: Platform, handover: Handover[Started]) -> Started:
        with ExitStack() as stack:
            try:
                listener = stack.enter_context(Listener(self._rundir.path / f"{name}.sock", self._owner))
                console_listener = stack.enter_context(Listener(self._rundir.path / f"{name}.con", self._owner))
                trace = None
                if self._connection.is_embedded:  # a daemon's QEMU cannot write to our directory
                    log_file = self._rundir.path / f"{name}.trace"
                    trace = stack.enter_context(start_log(log_file, self._owner, self._pid_file(name)))
            except OSError as error:
                raise _failure(error, self._rundir.path) from error
            xml = domain_xml(
                spec,
                platform,
                name=name,
                uuid=str(uuid.uuid4()),
                genid=str(uuid.uuid4()),
                channel=listener.path,
                console=console_listener.path,
                trace=trace,
            )
            self.launch(name, xml, spec, platform)
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
                self.end(name, process, sock, console)
                if isinstance(error, OSError):
                    raise HypervisorError(f"QEMU of {name} did not connect its channel: {error}") from error
                raise
        return process, sock, console

    def launch(self, name: str, xml: str, spec: MachineSpec, platform: Platform) -> None:
        """Have libvirt start the domain, in a control group where there can be one."""
        if not self._connection.is_embedded:  # the daemon's QEMU is the daemon's to confine
            self._connection.start(name, xml, spec.state, self._log_file(name))
            return
        with stage("make the control group"):
            group = self.groups.make(name, caps(spec, platform, self._cpu_limit))
        must = {"must_confine": self.groups.must_hold, "must_yield": self._must_yield}
        with Midwife(self._pid_file(name), name, group, self._nice, **must).at_work() as midwife:
            self._connection.start(name, xml, spec.state, self._log_file(name), midwife.wait_confined)

    def forget(self, name: str) -> None:
        """Give back what the host keeps for a VM whose QEMU is dead: its control group, its promised memory."""
        self.groups.remove(name)
        self._admission.release(name)

    def end(self, name: str, process: Process | None, *sockets: socket.socket | None) -> None:
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
            self._connection.destroy(name)
        self.forget(name)

    def _pid_file(self, name: str) -> Path:
        return self._rundir.path / "l" / "run" / "qemu" / f"{name}.pid"

    def _log_file(self, name: str) -> Path:
        return self._rundir.path / "l" / "log" / "qemu" / f"{name}.log"


def _failure(error: OSError, rundir: Path) -> SandboxError:
    """Return what to raise when the host's own calls fail: what it lacks, or what is wrong with the run directory."""
    said = error.strerror or str(error)
    match error.errno:
        case errno.EMFILE:
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return HostResources(f"no descriptor for another VM: this process may have {most} open; raise `ulimit -n`")
        case errno.ENFILE:
            return HostResources("no descriptor for another VM on this host; raise `sysctl fs.file-max`")
        case errno.ENOSPC | errno.EDQUOT:
            return HostResources(
                f"no room for another VM's files in {rundir}: {said}; `df` and `df -i` tell what is left"
            )
        case errno.ENOMEM | errno.ENOBUFS | errno.EAGAIN:
            return HostResources(f"no room for another VM: {said}; end something")
        case errno.ENOENT if not rundir.exists():
            return HypervisorError(
                f"the run directory {rundir} was removed while this process lives, as when its user logs out; start "
                "the process again, after `loginctl enable-linger` or with a SANDBOX_RUNTIME_DIR that stays"
            )
    return HypervisorError(f"the VM cannot be started: {error.filename or rundir}: {said}")


def kill_by_name(name: str) -> None:
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
