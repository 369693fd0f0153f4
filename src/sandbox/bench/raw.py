"""The floor: restore a template with nothing but QEMU and its monitor, and ask the agent for one answer.

The command line is that of a clone which libvirt started, so that both sides restore the very same machine. This is
benchmark code, blocking and without any of the library's guarantees; nothing else uses it.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from sandbox.guest.identity import Identity
from sandbox.hypervisor.process import command_line_arguments
from sandbox.template.manifest import STATE
from sandbox.template.template import Template
from sandbox.wire import GUEST_LIMITS, Decoder, Kind, encode

_SECONDS = 30.0


class RawDriver:
    """Restores clones of one template as fast as a script can."""

    def __init__(self, pid: int, state: Path, directory: Path) -> None:
        """Learn the command line from the running clone `pid`; `directory` takes the sockets."""
        self._directory = directory
        self._state = state
        self._arguments = self._adapt(command_line_arguments(pid))

    def _adapt(self, arguments: list[str]) -> list[str]:
        """Replace what belongs to libvirt: its monitor's descriptor, its secret, its log prefix, our sockets."""
        adapted: list[str] = []
        values = iter(arguments)
        for value in values:
            if value in ("-chardev", "-object", "-name", "-mon", "-msg"):
                option = next(values)
                if "charmonitor" in option or '"secret"' in option or value in ("-name", "-msg"):
                    continue
                if "id=charchannel0" in option:
                    option = re.sub(r"path=[^,]*", f"path={self._directory}/channel", option)
                if "id=console0" in option:
                    option = "null,id=console0"
                adapted += [value, option]
            else:
                adapted.append(value)
        return [*adapted, "-qmp", f"unix:{self._directory}/monitor"]

    def restore(self) -> float:
        """Return the seconds from starting QEMU to the agent's confirmed answer."""
        listeners = [self._listen("monitor"), self._listen("channel")]
        started = time.monotonic()
        process = subprocess.Popen(self._arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            monitor, _ = listeners[0].accept()
            channel, _ = listeners[1].accept()
            with monitor, channel, monitor.makefile("rw") as lines:
                monitor.settimeout(_SECONDS)
                channel.settimeout(_SECONDS)
                lines.readline()  # the greeting
                _ask(lines, "qmp_capabilities")
                capability = {"capability": "x-ignore-shared", "state": True}
                _ask(lines, "migrate-set-capabilities", capabilities=[capability])
                _ask(lines, "migrate-incoming", uri=f"file:{self._state}")
                while _ask(lines, "query-migrate").get("status") != "completed":
                    time.sleep(0.001)
                _ask(lines, "cont")
                _handshake(channel)
                return time.monotonic() - started
        finally:
            for listener in listeners:
                listener.close()
            process.kill()
            process.wait()

    def _listen(self, name: str) -> socket.socket:
        path = self._directory / name
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.settimeout(_SECONDS)
        listener.bind(str(path))
        listener.listen(1)
        return listener


@asynccontextmanager
async def raw_drivers(template: Template, number: int = 1) -> AsyncIterator[list[RawDriver]]:
    """Give drivers of a template that can restore at the same time, and remove their sockets afterwards."""
    with tempfile.TemporaryDirectory(prefix="sandbox-raw-") as name:
        places = [Path(name) / str(index) for index in range(number)]
        for place in (Path(name), *places):
            place.mkdir(exist_ok=True)
            place.chmod(0o711)
        async with template.lease() as vm:
            drivers = [RawDriver(vm.pid, template.directory / STATE, place) for place in places]
        yield drivers


def raw_rate(drivers: Sequence[RawDriver], total: int) -> float:
    """Return restores per second when all drivers work at once, `total` restores between them. Blocks."""
    numbers = count()  # next() of it is atomic

    def work(driver: RawDriver) -> None:
        while next(numbers) < total:
            driver.restore()

    started = time.monotonic()
    with ThreadPoolExecutor(len(drivers)) as threads:
        list(threads.map(work, drivers))
    return total / (time.monotonic() - started)


def _ask(lines: Any, command: str, **arguments: Any) -> dict[str, Any]:
    lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    lines.flush()
    while True:
        message: dict[str, Any] = json.loads(lines.readline())
        if "return" in message:
            return dict(message["return"])
        if "error" in message:
            raise RuntimeError(f"QEMU refused {command}: {message['error']['desc']}")


def _handshake(channel: socket.socket) -> None:
    identity = Identity(hostname="raw")
    channel.sendall(encode(Kind.HELLO, identity.epoch, 0, identity.hello()))
    decoder = Decoder(GUEST_LIMITS)
    while not (frames := decoder.feed(channel.recv(65536))):
        pass
    identity.verify(frames[0].payload)
