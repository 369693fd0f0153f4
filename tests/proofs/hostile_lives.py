"""VMs whose root does everything at once, one after another, and a caller that goes on using them."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from sandbox.certificate import Cause
from sandbox.config import Limits
from sandbox.errors import GuestLost, SandboxError
from sandbox.template.template import Template
from sandbox.vm import VM
from tests.conftest import PROGRAMS
from tests.waiting import until_written

LIFE_SECONDS = 12.0
"""A hostile VM that is not lost by then is released, so that others are drawn."""
CALLS = 3
"""To one hostile VM at a time."""
PATIENCE = 60.0
"""A call with a time-out of some seconds that takes this long hangs."""
OURS = frozenset({Cause.HOST_DEFECT, Cause.RELEASED, Cause.HOST_OUT_OF_MEMORY})
"""No guest may bring about any of these."""
DOWNLOAD_BYTES, DOWNLOAD_ENTRIES = 256 * 1024, 300
CAPTURE_BYTES = 2 * 1024 * 1024
READ_BYTES = 1024 * 1024
ESCAPED = "sandbox-escaped"
"""What the guest calls whatever it wants to put outside of a download."""
_CODE = (PROGRAMS / "hostile_words.py").read_text() + (PROGRAMS / "hostile_guest.py").read_text()


@dataclass
class Lives:
    """What came of hostile VMs and of the calls that were made to them."""

    ends: Counter[str] = field(default_factory=Counter)
    """VMs by the cause of their loss; `outlived` are those that were not lost until their time was up."""
    calls: Counter[str] = field(default_factory=Counter)
    """Calls by what they were and how they ended: `returned`, or the error's type."""
    seconds: list[float] = field(default_factory=list)
    """How long each has lived after it was taken over."""
    wrong: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(self.ends.values())


class HostileCaller:
    """Leases VMs, has each taken over from inside, and uses it as callers do until it is lost."""

    def __init__(self, template: Template, seed: str, directory: Path, lives: Lives) -> None:
        self._template, self._seed, self._directory, self._lives = template, seed, directory, lives
        self._draw = random.Random(seed)
        self._number = 0
        self._uses: list[Callable[[VM], Awaitable[object]]] = [
            self._run, self._exec, self._spill, self._follow, self._read, self._list, self._stat, self._download,
            self._upload, self._watch, self._cells,
        ]  # fmt: skip

    async def go_on(self, begun: Callable[[], None]) -> None:
        """Use one hostile VM after another until cancelled; call `begun` whenever one has been taken over."""
        while True:
            self._number += 1
            seed = f"{self._seed}-{self._number}"
            async with self._template.lease() as vm:
                try:
                    await self._use(vm, seed, begun)
                finally:
                    self._lives.ends["outlived" if vm.loss is None else self._cause(vm.loss, seed)] += 1

    async def _use(self, vm: VM, seed: str, begun: Callable[[], None]) -> None:
        command = ["python3", "-c", _CODE, str(vm._client._epoch), seed]
        hostile = await vm.spawn(command, user="root", stdin=None, capture_bytes=CAPTURE_BYTES)
        await until_written(hostile, len("begun\n"))
        await hostile.write(b"x")
        begun()
        started = time.monotonic()
        try:
            await self._call_often(vm, seed)
        finally:
            self._lives.seconds.append(time.monotonic() - started)

    async def _call_often(self, vm: VM, seed: str) -> None:
        with anyio.move_on_after(LIFE_SECONDS):
            async with anyio.create_task_group() as group:
                for _ in range(CALLS):
                    group.start_soon(self._call_on, vm, seed)

    async def _call_on(self, vm: VM, seed: str) -> None:
        while vm.loss is None:
            await self._call(self._draw.choice(self._uses), vm, seed)

    async def _call(self, use: Callable[[VM], Awaitable[object]], vm: VM, seed: str) -> None:
        """Make one call; what it ends with has to be a result, or a typed error with the reason."""
        name, ended = use.__name__.strip("_"), "returned"
        try:
            with anyio.move_on_after(PATIENCE) as scope:
                str(await use(vm))
        except GuestLost as error:
            ended = "GuestLost"
            self._cause(error, seed)
        except SandboxError as error:
            ended = type(error).__name__
            self._check_words(error, seed)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            ended = "untyped"
            self._blame(seed, f"{name} raised {error!r}")
        if scope.cancelled_caught:
            self._blame(seed, f"{name} hung for {PATIENCE:g} s")
        self._lives.calls[f"{name}: {ended}"] += 1

    def _cause(self, loss: GuestLost, seed: str) -> str:
        self._check_words(loss, seed)
        if loss.certificate is None:
            self._blame(seed, f"no certificate says why: {loss!r}")
            return "unknown"
        if loss.certificate.cause in OURS:
            self._blame(seed, f"{loss.certificate}")
        return loss.certificate.cause

    def _check_words(self, error: SandboxError, seed: str) -> None:
        if not str(error).isprintable():
            self._blame(seed, f"an error's text is no line for a terminal: {error.args!r}")

    def _blame(self, seed: str, said: str) -> None:
        self._lives.wrong.append(f"life {seed}: {said}")

    # What a caller does.

    async def _run(self, vm: VM) -> object:
        return await vm.run("print(1)", stdin=bytes(self._draw.choice((0, 100, 500_000))), timeout=2)

    async def _exec(self, vm: VM) -> object:
        limits = Limits(output_bytes=self._draw.choice((0, 1000, 10**6)))
        return await vm.exec("yes", timeout=2, idle_timeout=1, limits=limits, on_output=lambda *_: asyncio.sleep(0.01))

    async def _spill(self, vm: VM) -> object:
        execution = await vm.spawn("yes", timeout=3, capture_bytes=CAPTURE_BYTES)
        result = await execution.wait()
        if max(len(result.stdout), len(result.stderr)) > CAPTURE_BYTES:
            self._lives.wrong.append(f"{len(result.stdout)} and {len(result.stderr)} bytes were kept")
        return result

    async def _follow(self, vm: VM) -> object:
        execution = await vm.spawn("yes", timeout=3)
        with anyio.move_on_after(2):
            async for _ in execution.events():
                await anyio.sleep(self._draw.choice((0, 0, 0.01)))
        await execution.read("stdout", self._draw.choice((0, 10**6)))
        execution.kill()
        return await execution.wait()

    async def _read(self, vm: VM) -> object:
        return len(await vm.files.read("file", limit=READ_BYTES, timeout=2))

    async def _list(self, vm: VM) -> object:
        return await vm.files.list("d", limit=5000, timeout=2)

    async def _stat(self, vm: VM) -> object:
        with anyio.move_on_after(2):
            await vm.files.exists("file")
            return await vm.files.stat("file")
        return None

    async def _cells(self, vm: VM) -> object:
        language = self._draw.choice(("python", "python", "bash"))
        async with vm.context(language) as context:
            results = [await context.run("1 + 1", timeout=2, capture_bytes=100_000) for _ in range(3)]
        return [(str(result.error), repr(result), result.describe()) for result in results]

    async def _watch(self, vm: VM) -> object:
        with anyio.move_on_after(2):
            async with vm.files.watch(".", recursive=True) as changes:
                return [await anext(changes) for _ in range(20)]
        return None

    async def _upload(self, vm: VM) -> object:
        return await vm.upload(self._directory.parent / "given", "given", timeout=3)

    async def _download(self, vm: VM) -> object:
        target = self._directory / str(self._draw.randrange(10**9))
        try:
            return await vm.download(
                "d", target, max_bytes=DOWNLOAD_BYTES, max_entries=DOWNLOAD_ENTRIES, timeout=3,
                strict=self._draw.random() < 0.2,
            )  # fmt: skip
        finally:
            self._lives.wrong += await asyncio.shield(asyncio.to_thread(_look_at, target))


def _look_at(target: Path) -> list[str]:
    """Return what is wrong with what a guest has made here, and remove it."""
    wrong, count, size = [], 0, 0
    for parent, directories, files in os.walk(target):
        for name in (*directories, *files):
            path = Path(parent, name)
            status = path.lstat()
            count += 1
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
            if not stat.S_ISDIR(status.st_mode) | stat.S_ISREG(status.st_mode) | stat.S_ISLNK(status.st_mode):
                wrong.append(f"{path!r} is of type {status.st_mode:o}")
            if status.st_mode & 0o7000 and not path.is_symlink():
                wrong.append(f"{path!r} has mode {status.st_mode:o}")
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(target)):
                wrong.append(f"{path!r} leads out, to {path.readlink()!r}")
    if count > DOWNLOAD_ENTRIES or size > DOWNLOAD_BYTES:
        wrong.append(f"{count} entries with {size} bytes were downloaded")
    places = (target.parent / ESCAPED, target.parent.parent / ESCAPED, Path("/tmp", ESCAPED), Path(ESCAPED))
    wrong += [f"{path} was made, outside of {target}" for path in places if os.path.lexists(path)]
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    return wrong
