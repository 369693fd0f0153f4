"""A VM that is ready: a machine, a verified conversation with its agent, and what can be asked of it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Protocol

from sandbox.errors import ConfigError, GuestFileError, GuestLost, StartError
from sandbox.guest.client import GuestClient
from sandbox.guest.identity import Identity, Receipt
from sandbox.guest.run import OutputSink, Stdin, execute
from sandbox.hypervisor.machine import Machine
from sandbox.result import Result

CAPTURE_BYTES = 16 * 1024 * 1024
FILE_SECONDS = 60.0
FILE_BYTES = 256 * 1024 * 1024
READY_SECONDS = 30.0
BOOT_SECONDS = 120.0


class VMSource(Protocol):
    """Where VMs come from: a cold boot, a template, a pool of another source."""

    def lease(self) -> AbstractAsyncContextManager[VM]:
        """Give one fresh VM for the length of the context; destroy it afterwards, whatever happened."""
        ...


class VM:
    """One fresh virtual machine. Commands run in it one after another or side by side, until it is destroyed."""

    def __init__(self, machine: Machine, client: GuestClient) -> None:
        self._machine = machine
        self._client = client
        self._on_lost: list[Callable[[], None]] = []
        self.receipt: Receipt | None = None
        self.timings: Mapping[str, float] = {}

    def __repr__(self) -> str:
        return f"<VM {self.name} {'alive' if self.is_alive else 'dead'}>"

    @property
    def name(self) -> str:
        """The machine's name in libvirt, on QEMU's command line and in logs."""
        return self._machine.name

    @property
    def pid(self) -> int:
        """Process id of its QEMU."""
        return self._machine.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether QEMU runs and the conversation with the guest is unbroken."""
        return self._client.lost is None and self._machine.is_alive

    def call_when_lost(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when the VM dies or its channel breaks; at once if it has."""
        if self.is_alive:
            self._on_lost.append(callback)
        else:
            callback()

    async def run(
        self,
        code: str,
        *,
        args: Sequence[str] = (),
        name: str = "script.py",
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: Stdin = b"",
        on_output: OutputSink | None = None,
        capture_bytes: int = CAPTURE_BYTES,
    ) -> Result:
        """Run Python code as a script of its own in a fork of the guest's warm interpreter.

        `timeout` is in seconds; when it passes, the whole process tree is killed and the result says so. `on_output`
        gets (`"stdout"` or `"stderr"`, bytes) as the program writes; awaiting in it slows the program down.
        `capture_bytes` bounds what each stream of the result holds. Raises `GuestLost` when the VM dies meanwhile.
        """
        request: dict[str, object] = {"op": "python", "code": code, "name": name, "argv": list(args)}
        request |= {"env": dict(env or {}), "cwd": cwd, "user": user}
        return await self._execute(request, timeout, stdin, on_output, capture_bytes)

    async def exec(
        self,
        argv: Sequence[str] | str,
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: Stdin = b"",
        on_output: OutputSink | None = None,
        capture_bytes: int = CAPTURE_BYTES,
    ) -> Result:
        """Run a command: an argument vector, or a string for `bash -c`. The rest is as in `run`.

        A command that does not exist exits with 127, one that cannot be executed with 126.
        """
        vector = ["bash", "-c", argv] if isinstance(argv, str) else list(argv)
        if not vector:
            raise ConfigError("the argument vector is empty")
        request: dict[str, object] = {"op": "argv", "argv": vector}
        request |= {"env": dict(env or {}), "cwd": cwd, "user": user}
        return await self._execute(request, timeout, stdin, on_output, capture_bytes)

    async def write_file(self, path: str, data: bytes, *, mode: int | None = None, user: str | None = None) -> None:
        """Write `data` to `path` in the guest, as the unprivileged user unless `user` says otherwise.

        Relative paths start at the working directory. Raises `GuestFileError` with the guest's errno.
        """
        request: dict[str, object] = {"op": "write", "path": path, "mode": mode, "user": user}
        result = await self._execute(request, FILE_SECONDS, data, None, CAPTURE_BYTES)
        _check_file(result, path)

    async def read_file(self, path: str, *, user: str | None = None, limit: int = FILE_BYTES) -> bytes:
        """Return the content of `path` in the guest; refuse one of more than `limit` bytes."""
        request: dict[str, object] = {"op": "read", "path": path, "user": user}
        result = await self._execute(request, FILE_SECONDS, b"", None, limit)
        _check_file(result, path)
        if result.stdout_truncated:
            raise GuestFileError(errno.EFBIG, f"the file has {result.stdout_bytes} bytes, the limit is {limit}", path)
        return result.stdout

    async def _execute(
        self,
        request: dict[str, object],
        timeout: float | None,
        stdin: Stdin,
        on_output: OutputSink | None,
        capture_bytes: int,
    ) -> Result:
        if timeout is not None and timeout <= 0:
            raise ConfigError(f"timeout is {timeout:g} s; give a positive number of seconds or None")
        _check_words(request)
        try:
            result = await execute(
                self._client,
                request,
                stdin=stdin,
                on_output=on_output,
                timeout=timeout,
                capture_bytes=capture_bytes,
            )
        except GuestLost as lost:
            if lost.partial is not None:
                lost.partial = replace(lost.partial, vm=self.name, timings={**self.timings})
            raise
        return replace(result, vm=self.name, timings={**self.timings, "run": result.duration})

    async def quiesce(self, timeout: float) -> None:
        """Bring the guest to rest for a snapshot; afterwards it takes nothing but a new identity."""
        await self._client.quiesce(timeout)

    def kill(self) -> None:
        """End the QEMU process at once, without waiting; the owner still destroys what remains."""
        self._machine.process.kill()

    def _lose(self, error: GuestLost) -> None:
        """Whatever broke first, machine or conversation: end the other, tell everybody once."""
        self._machine.process.kill()
        self._client.close(error)
        callbacks, self._on_lost = self._on_lost, []
        for callback in callbacks:
            callback()


@asynccontextmanager
async def open_vm(machine: Machine, *, ready_seconds: float) -> AsyncIterator[VM]:
    """Take ownership of a running machine, renew its identity, give it as a VM, and destroy it in the end.

    Raises `StartError` when the guest does not confirm its identity in time; the machine is then destroyed.
    """
    loop = asyncio.get_running_loop()
    pidfd = machine.process.fileno()
    client: GuestClient | None = None
    try:
        client = GuestClient(machine.stream, on_lost=lambda error: vm._lose(error))  # noqa: PLW0108 - vm comes later
        vm = VM(machine, client)

        def on_death() -> None:
            loop.remove_reader(pidfd)
            machine.process.reap()
            vm._lose(GuestLost(f"the VM {machine.name} has ended: its QEMU process is gone"))

        loop.add_reader(pidfd, on_death)
        started = time.monotonic()
        try:
            vm.receipt = await client.handshake(Identity(hostname=machine.name), ready_seconds)
        except GuestLost as error:
            raise StartError(f"the guest of {machine.name} did not become ready: {error}") from error
        vm.timings = {"ready": time.monotonic() - started}
        yield vm
    finally:
        loop.remove_reader(pidfd)
        if client is not None:  # whoever still waits for an execution hears of the end
            client.close(GuestLost(f"the lease on {machine.name} has ended: its VM is destroyed"))
        await machine.destroy()


async def warm_up(vm: VM) -> None:
    """Run one throw-away script, so that the caller's first command meets warm caches."""
    try:
        result = await vm.run("print()", timeout=READY_SECONDS)
    except GuestLost as error:
        raise StartError(f"the guest of {vm.name} was lost in its warm-up: {error}") from error
    if not result.ok:
        raise StartError(f"the guest of {vm.name} cannot run a simple script: {result.describe()}")


def _check_file(result: Result, path: str) -> None:
    if result.ok:
        return
    try:
        said = json.loads(result.stderr[:4096])
        number = int(said["errno"])
    except (ValueError, KeyError, TypeError):
        detail = result.stderr[:200].decode("utf-8", "replace").strip()
        raise GuestFileError(errno.EIO, detail or result.describe(), path) from None
    raise GuestFileError(number, os.strerror(number), path)


def _check_words(request: Mapping[str, object]) -> None:
    """Refuse what no program can be given: names without a name, and NUL bytes."""
    words = [value for key in ("cwd", "user", "path", "name") if isinstance(value := request.get(key), str)]
    if isinstance(argv := request.get("argv"), list):
        words += argv
    if isinstance(environment := request.get("env"), dict):
        words += [*environment.keys(), *environment.values()]
        for name in environment:
            if not name or "=" in name:
                raise ConfigError(f"environment variable name {name!r} is empty or holds '='")
    if any("\0" in word for word in words):
        raise ConfigError("an argument, path or environment variable holds a NUL byte, which no program can take")
