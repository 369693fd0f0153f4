"""A golden snapshot with a program frozen in it, and clones of it that nobody defends: what controls are made of."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from sandbox.bench.raw import RawDriver, _ask
from sandbox.guest.events import Output
from sandbox.hypervisor.process import command_line_arguments
from sandbox.paths import make_directory
from sandbox.template.manifest import MEMORY, STATE
from sandbox.template.template import Template
from sandbox.vm import BOOT_SECONDS, VM, open_vm
from tests.conftest import PROGRAMS

_SECONDS = 30.0
Draws = Mapping[str, list[object]]


@dataclass(frozen=True)
class FrozenDrawer:
    """A template that contains a running `frozen_drawer.py`, and the generation id that it was made with, if any."""

    template: Template
    generation: str | None

    @classmethod
    @asynccontextmanager
    async def bake(cls, template: Template, count: int) -> AsyncIterator[FrozenDrawer]:
        """Make one beside `template`, of the same image and machine; remove it afterwards."""
        target = template.directory.parent / f"test-frozen-{os.getpid()}"
        await run_sync(_prepare, target, template)
        try:
            blank = replace(template.spec, memory_file=target / MEMORY, memory_shared=True, state=None)
            machine = await template.host.start(blank)
            async with open_vm(machine, ready_seconds=BOOT_SECONDS) as vm:
                arguments = await run_sync(command_line_arguments, vm.pid)
                await _start_drawer(vm, count)
                await vm.quiesce(_SECONDS)
                await machine.save(target / STATE)
            for name in (MEMORY, STATE):
                (target / name).chmod(0o444)
            spec = replace(template.spec, memory_file=target / MEMORY, state=target / STATE)
            yield cls(Template(template.host, target, spec, template.manifest), _generation(arguments))
        finally:
            shutil.rmtree(target)

    async def ask_defended(self, vm: VM) -> Draws:
        """Have a clone's drawer draw; the clone has been through the library's handshake."""
        stream = vm._machine.console._stream
        stream.write(b"?")
        with anyio.fail_after(_SECONDS):
            while not (answer := _parsed(vm.console())):  # noqa: ASYNC110 - a console has no events
                await anyio.sleep(0.01)
        return answer


def _prepare(target: Path, template: Template) -> None:
    """Make a directory with an empty memory file and state file that QEMU may write."""
    make_directory(target, 0o711)
    for name, size in ((MEMORY, template.spec.memory_bytes), (STATE, 0)):
        path = target / name
        path.touch(0o600)
        os.truncate(path, size)
        if template.host.owner is not None:
            os.chown(path, *template.host.owner)


async def _start_drawer(vm: VM, count: int) -> None:
    code = (PROGRAMS / "frozen_drawer.py").read_text()
    await vm.write_file("/tmp/drawer.py", code.encode(), user="root")
    execution = await vm.spawn(["python3", "/tmp/drawer.py", str(count)], user="root")
    async for event in execution.events():
        if isinstance(event, Output):
            assert event.data == b"frozen drawer waits\n", event
            return
    raise AssertionError("the drawer ended before it was asked")


def _generation(arguments: list[str]) -> str | None:
    """Return the GUID that a machine's vmgenid device shows to its guest; under TCG there is none."""
    devices = [argument for argument in arguments if '"driver":"vmgenid"' in argument]
    return str(json.loads(devices[0])["guid"]) if devices else None


def _parsed(said: str) -> Draws | None:
    start, end = said.find("\n<{"), said.rfind("}>")
    answer: Draws | None = json.loads(said[start + 2 : end + 1]) if 0 <= start < end else None
    return answer


class UndefendedClones(RawDriver):
    """Clones made by QEMU alone: a generation id is the snapshot's own, and the agent is told nothing."""

    def __init__(self, pid: int, drawer: FrozenDrawer, directory: Path) -> None:
        super().__init__(pid, drawer.template.directory / STATE, directory)
        self._arguments = [self._undefended(argument, drawer.generation) for argument in self._arguments]

    def _undefended(self, argument: str, generation: str | None) -> str:
        if argument == "null,id=console0":
            return f"socket,id=console0,path={self._directory}/console"
        if '"driver":"vmgenid"' in argument:
            return json.dumps({**json.loads(argument), "guid": generation})
        return argument

    def draw(self) -> Draws:
        """Restore one clone and return what its frozen program draws at once."""
        listeners = [self._listen(name) for name in ("monitor", "channel", "console")]
        process = subprocess.Popen(self._arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        sockets: list[socket.socket] = []
        try:
            sockets += [listener.accept()[0] for listener in listeners]
            for sock in sockets:
                sock.settimeout(_SECONDS)
            monitor, _, console = sockets
            with monitor.makefile("rw") as lines:
                lines.readline()  # the greeting
                _load(lines, self._state)
            console.sendall(b"?")
            return _read_answer(console)
        finally:
            for sock in (*sockets, *listeners):
                sock.close()
            process.kill()
            process.wait()


def _load(lines: Any, state: Path) -> None:
    _ask(lines, "qmp_capabilities")
    _ask(lines, "migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
    _ask(lines, "migrate-incoming", uri=f"file:{state}")
    while _ask(lines, "query-migrate").get("status") != "completed":
        time.sleep(0.001)
    _ask(lines, "cont")


def _read_answer(console: socket.socket) -> Draws:
    said = ""
    while not (answer := _parsed(said)):
        data = console.recv(65536)
        assert data, "the clone's console closed"
        said += data.decode(errors="replace")
    return answer
