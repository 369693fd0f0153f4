"""The libvirt connection of this process, and the only module that imports libvirt. Everything in here blocks.

Call it from worker threads only. libvirt's own event loop runs in one daemon thread.
"""

from __future__ import annotations

import atexit
import json
import re
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox.errors import HypervisorError, StateNotLoaded

from sandbox.hypervisor.libvirt_log import libvirt  # isort: skip - it must come before any other import of libvirt
import libvirt_qemu

from sandbox.hypervisor.complaint import complaint_in
from sandbox.hypervisor.process import become_subreaper
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
        """Open `uri`; for the embedded driver prepare its root directory and let it learn what QEMU can do."""
        _start_event_loop()
        is_embedded = uri.startswith("qemu:///embed")
        if is_embedded:
            for name in ("etc", "lib/qemu", "run/qemu", "log/qemu"):
                make_directory(root / name)
            config = _EMBED_CONFIG + (f'user = "{user}"\ngroup = "{user}"\n' if user else "")
            if resource.getrlimit(resource.RLIMIT_NOFILE)[1] > _MAX_FILES:  # else libvirt fails to set what holds
                config += f"max_files = {_MAX_FILES}\n"
            (root / "etc" / "qemu.conf").write_text(config)
            make_directory(cache)
            (root / "cache").symlink_to(cache)  # the capability probe takes seconds: share its result
            uri = f"qemu:///embed?root={root}"
        try:
            handle = libvirt.open(uri)
            # Before becoming subreaper: the probe's own processes must go to init, which reaps them.
            handle.getDomainCapabilities(emulator, "x86_64", "q35", None)
        except libvirt.libvirtError as error:
            raise HypervisorError(f"libvirt cannot be used at {uri}: {error}; `sandbox doctor` tells more") from error
        if is_embedded:
            become_subreaper()
        return cls(handle, uri, is_embedded=is_embedded)

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
            with stage("libvirt creates the domain"):
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
        if (log_file := self._log_files.pop(name, None)) is not None:
            log_file.unlink(missing_ok=True)


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
