"""The libvirt connection of this process, and the only module that imports libvirt. Everything in here blocks.

Call it from worker threads only. libvirt's own event loop runs in one daemon thread.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import re
import resource
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from sandbox.errors import HypervisorError, StateNotLoaded

from sandbox.hypervisor.libvirt_log import libvirt  # isort: skip - it must come before any other import of libvirt
import libvirt_qemu

from sandbox.hypervisor.complaint import complaint_in
from sandbox.hypervisor.facts import LOG_KIB
from sandbox.hypervisor.process import adopting_orphans, leaving_orphans
from sandbox.log import log
from sandbox.paths import make_directory
from sandbox.trace.stage import stage

_EMBED_CONFIG = """\
stdio_handler = "file"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
seccomp_sandbox = 1
max_core = 0
dump_guest_core = 0
"""
"""Control groups are ours, see `groups.py`."""
_MOST_VCPUS = 64
_MAX_FILES = 256 + 4 * _MOST_VCPUS
"""A QEMU for a small guest has some 25 files open, and under KVM up to four more for each virtual processor."""
_DEVICE = re.compile(r"^\s+/.* \(([\w.-]+)\)\r?$", re.MULTILINE)
_BUSES = ("System", "PCIE", "ISA", "virtio-pci-bus", "virtio-serial-bus")
_NO_DEVICES = frozenset({"container", "irq", "memory-region", *_BUSES})
"""What QEMU's object tree has besides devices: wires, address ranges and the buses between devices."""
_HUMAN = 1
"""libvirt's flag for a command of QEMU's monitor for people."""
_COMMAND = re.compile(r"Child process \(.*\) ", re.DOTALL)
"""QEMU's whole command line in a message of libvirt's, which hides what follows it."""
_SYSTEM_BUS = "DBUS_SYSTEM_BUS_ADDRESS"
_POLL_SECONDS = 0.001
_MIGRATION_SECONDS = 60.0


class Connection:
    """An open connection, and the log files that go with its domains."""

    def __init__(self, handle: Any, uri: str, *, is_embedded: bool) -> None:
        self._uri = uri
        self.is_embedded = is_embedded
        self._log_files: dict[str, Path] = {}
        self._opening = threading.Lock()
        self._opened = handle
        self._callback = self._listen()
        self._version = self._ask_version()
        self._learned: tuple[str, int] | None = None
        """The emulator that libvirt knows, and when that file was last changed."""

    @property
    def _handle(self) -> Any:
        """The connection. One to a daemon that has ended is opened anew, once there is such a daemon again."""
        with self._opening:
            if not self.is_embedded and not self._opened.isAlive():
                self._opened = libvirt.open(self._uri)
                self._callback = self._listen()
                self._version = self._ask_version()
                log.warning("libvirt_reconnected", uri=self._uri)
            return self._opened

    def _listen(self) -> Any:
        event = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        return self._opened.domainEventRegisterAny(None, event, self._on_event, None)

    @classmethod
    def open(cls, uri: str, root: Path, cache: Path, emulator: str, user: str | None) -> Connection:
        """Open `uri`; for the embedded driver prepare its root directory and let it learn what QEMU can do.

        After a failure it can be called again; the embedded driver then with the same `root`, see `embedded_root`.
        """
        global _embedded_root, _embedded_failure  # noqa: PLW0603 - a process has one embedded driver, so have we
        is_embedded = uri.startswith("qemu:///embed")
        if is_embedded and _embedded_failure is not None:
            raise HypervisorError(
                f"libvirt's driver in this process failed to start before ({_embedded_failure}) and cannot be started "
                "again in it; mend that, and start another process"
            )
        _start_event_loop()
        if is_embedded:
            for name in ("etc", "lib/qemu", "run/qemu", "log/qemu"):
                make_directory(root / name)
            config = _EMBED_CONFIG + (f'user = "{user}"\ngroup = "{user}"\n' if user else "")
            if resource.getrlimit(resource.RLIMIT_NOFILE)[1] > _MAX_FILES:  # else libvirt fails to set what holds
                config += f"max_files = {_MAX_FILES}\n"
            (root / "etc" / "qemu.conf").write_text(config)
            make_directory(cache)
            (root / "cache").unlink(missing_ok=True)  # there, if this is another attempt
            (root / "cache").symlink_to(cache)  # the capability probe takes seconds: share its result
            uri = f"qemu:///embed?root={root}"
            if os.geteuid() == 0:
                _keep_from_system_bus()
        try:
            try:
                handle = libvirt.open(uri)
            except libvirt.libvirtError as error:
                if is_embedded:
                    _embedded_failure = str(error)
                raise
            if is_embedded:
                _embedded_root = root
            connection = cls(handle, uri, is_embedded=is_embedded)
        except libvirt.libvirtError as error:
            raise HypervisorError(f"libvirt cannot be used at {uri}: {error}; `sandbox doctor` tells more") from error
        try:
            connection.learn(emulator)
        except BaseException:
            connection.close()
            raise
        return connection

    def learn(self, emulator: str) -> None:
        """Let libvirt find out what a QEMU can do, which takes seconds, unless it has and the file is the same.

        Now, so that it does not happen at a start while we adopt orphans. Raises `OSError` if there is no such file.
        """
        found = (emulator, Path(emulator).stat().st_ctime_ns)
        if found == self._learned:
            return
        try:
            with leaving_orphans():  # libvirt waits half a minute for a process of the probe that only we could reap
                self._handle.getDomainCapabilities(emulator, "x86_64", "q35", None)
        except libvirt.libvirtError as error:
            raise HypervisorError(
                f"libvirt cannot be used at {self._uri} with {emulator}: {error}; `sandbox doctor` tells more"
            ) from error
        self._learned = found

    def close(self) -> None:
        try:
            self._opened.domainEventDeregisterAny(self._callback)
            self._opened.close()
        except libvirt.libvirtError as error:
            log.debug("libvirt_close_failed", error=str(error))

    def start(
        self, name: str, xml: str, state: Path | None, log_file: Path, before_running: Callable[[], None] | None = None
    ) -> None:
        """Create the domain, load `state` if given, and let it run; leave nothing behind on failure.

        `log_file` is what libvirt writes about the domain; it is removed when the domain is gone. `before_running` is
        called when its process exists and before its guest executes anything. Raises `StateNotLoaded` when QEMU says
        that it cannot load `state`, and `HypervisorError` for every other failure.
        """
        # Not bound to the connection: a daemon that is upgraded would end every VM that is at work.
        flags = libvirt.VIR_DOMAIN_START_PAUSED
        self._log_files[name] = log_file
        domain = None
        try:
            with stage("libvirt creates the domain"), adopting_orphans() if self.is_embedded else nullcontext():
                domain = self._handle.createXML(xml, flags)
            if state is not None:
                with stage("have the state loaded"):
                    _load(domain, state, log_file)
            if before_running is not None:
                with stage("wait for the control group"):
                    before_running()
            with stage("let it run"):
                domain.resume()
        except (libvirt.libvirtError, HypervisorError) as error:
            if domain is not None:
                self.destroy(name)
            self._forget(name)
            kind = StateNotLoaded if isinstance(error, StateNotLoaded) else HypervisorError
            raise kind(f"the VM {name} did not start: {_COMMAND.sub('QEMU: ', str(error))}") from error

    def save(self, name: str, state: Path) -> None:
        """Stop the domain for good and write its device state (not its shared memory) to `state`."""
        try:
            domain = self._handle.lookupByName(name)
            domain.suspend()
            _ignore_shared_memory(domain)
            _qmp(domain, "migrate", uri=f"file:{state}")
            _wait_migrated(domain, "saving the device state")
        except (libvirt.libvirtError, HypervisorError) as error:
            raise HypervisorError(f"the state of {name} cannot be saved: {error}") from error

    def pause(self, name: str) -> None:
        """Stop the domain's processors."""
        try:
            self._handle.lookupByName(name).suspend()
        except libvirt.libvirtError as error:
            raise HypervisorError(f"{name} cannot be paused: {error}") from error

    def resume(self, name: str) -> None:
        """Let the domain's processors run again."""
        try:
            self._handle.lookupByName(name).resume()
        except libvirt.libvirtError as error:
            raise HypervisorError(f"{name} cannot be resumed: {error}") from error

    def destroy(self, name: str) -> None:
        """End the domain if it exists."""
        try:
            self._handle.lookupByName(name).destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                raise HypervisorError(f"libvirt cannot destroy {name}: {error}") from error

    def devices(self, name: str) -> list[str]:
        """Return the type of every device that the domain's QEMU has, as QEMU itself tells, sorted."""
        try:
            tree = libvirt_qemu.qemuMonitorCommand(self._handle.lookupByName(name), "info qom-tree", _HUMAN)
        except libvirt.libvirtError as error:
            raise HypervisorError(f"QEMU of {name} does not tell its devices: {error}") from error
        return sorted(kind for kind in _DEVICE.findall(tree) if kind not in _NO_DEVICES)

    def domains(self) -> list[str]:
        """Return the names of the domains that libvirt takes for alive."""
        return [domain.name() for domain in self._handle.listAllDomains()]

    @property
    def version(self) -> str:
        """The version of libvirt: of the library for the embedded driver, else of the daemon at the other end."""
        return self._version

    def _ask_version(self) -> str:
        number = self._opened.getLibVersion()
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

    def _on_event(self, _connection: Any, domain: Any, event: int, _detail: int, _opaque: Any) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._forget(domain.name())

    def _forget(self, name: str) -> None:
        log_file = self._log_files.pop(name, None)
        if log_file is None:
            return
        with suppress(OSError):  # a daemon's log is not ours to look at
            if log_file.stat().st_size >= LOG_KIB << 10:
                log.warning("vm_filled_its_log", vm=name, kib=LOG_KIB, reason="its guest misused a device, most likely")
            log_file.unlink()


def _keep_from_system_bus() -> None:
    """Have libvirt find no system bus in this process: as root it would register each VM with systemd-machined.

    That moves QEMU out of our service's control group and its limits, and a failure there holds up a start for half a
    minute. There is no setting for it: libvirt looks for the bus once, so it is made to look while there is none. That
    takes two functions that are not part of libvirt's interface; without them nothing changes.
    """
    library = ctypes.CDLL("libvirt.so.0")
    try:
        has_bus, share_bus = library.virGDBusHasSystemBus, library.virGDBusSetSharedBus
    except AttributeError:
        log.info("system_bus_not_kept_away", consequence="VMs are registered with systemd-machined, where that runs")
        return
    before = os.environ.get(_SYSTEM_BUS)
    os.environ[_SYSTEM_BUS] = "unix:path=/proc/no-bus"
    try:
        share_bus(False)  # else libvirt would use a connection of the application's
        has_bus()
    finally:
        del os.environ[_SYSTEM_BUS]
        if before is not None:
            os.environ[_SYSTEM_BUS] = before


def _qmp(domain: Any, command: str, **arguments: Any) -> Any:
    """Return QEMU's answer; raise `HypervisorError` when it refuses, which libvirt passes on as an answer."""
    request = json.dumps({"execute": command, "arguments": arguments})
    reply = json.loads(libvirt_qemu.qemuMonitorCommand(domain, request, 0))
    if "return" not in reply:
        raise _MigrationFailed(f"QEMU refuses {command}: {reply.get('error', {}).get('desc', reply)}")
    return reply["return"]


def _ignore_shared_memory(domain: Any) -> None:
    _qmp(domain, "migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])


def _load(domain: Any, state: Path, log_file: Path) -> None:
    """Have QEMU load a saved state. Raises `StateNotLoaded`, with its words, when it says that it cannot."""
    with complaint_in(log_file) as complaint:
        try:
            _ignore_shared_memory(domain)
            _qmp(domain, "migrate-incoming", uri=f"file:{state}")
            _wait_migrated(domain, "loading the saved state")
        except libvirt.libvirtError as error:  # a QEMU that fails at it ends
            if not (said := complaint.text()):
                raise
            raise StateNotLoaded(f"QEMU cannot load the saved state {state}: {said}") from error
        except _MigrationFailed as error:
            said = complaint.text()
            raise StateNotLoaded(f"{error}{': ' if said else ''}{said}") from error


class _MigrationFailed(HypervisorError):
    """QEMU itself says that it cannot load or save a state."""


def _wait_migrated(domain: Any, doing: str) -> None:
    deadline = time.monotonic() + _MIGRATION_SECONDS
    while (status := _qmp(domain, "query-migrate")).get("status") != "completed":
        if status.get("status") in ("failed", "cancelled"):
            raise _MigrationFailed(f"QEMU failed at {doing}: {status.get('error-desc', 'no reason given')}")
        if time.monotonic() > deadline:
            raise HypervisorError(f"QEMU did not finish {doing} within {_MIGRATION_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)


_embedded_root: Path | None = None
_embedded_failure: str | None = None


def embedded_root() -> Path | None:
    """Return the root directory of the embedded driver once it has started: this process can never have another."""
    return _embedded_root


_event_loop = threading.Lock()
_event_loop_thread: threading.Thread | None = None
_event_loop_stops = threading.Event()
_STOP_SECONDS = 1.0


def is_begun() -> bool:
    """Return whether this process has used libvirt, which it can never undo."""
    return _event_loop_thread is not None


def _start_event_loop() -> None:
    """Start libvirt's event loop once per process; it ends with the process, before the interpreter does."""
    global _event_loop_thread  # noqa: PLW0603 - libvirt has one event loop per process, so have we
    with _event_loop:
        if _event_loop_thread is None:
            libvirt.virEventRegisterDefaultImpl()
            _event_loop_thread = threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True)
            _event_loop_thread.start()
            atexit.register(_stop_event_loop, _event_loop_thread)


def _run_event_loop() -> None:
    while not _event_loop_stops.is_set():
        libvirt.virEventRunDefaultImpl()


def _stop_event_loop(thread: threading.Thread) -> None:
    """End the loop: a callback into an interpreter that is being taken down would crash the process."""
    if not thread.is_alive():  # this is a forked child: libvirt is of no use in it
        return
    _event_loop_stops.set()
    libvirt.virEventAddTimeout(0, lambda *_: None, None)  # wakes the loop
    thread.join(_STOP_SECONDS)
