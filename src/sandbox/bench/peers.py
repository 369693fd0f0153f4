"""Other ways to run a script on this host, in turn with ours: from the call to the result in hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync

from sandbox.bench.cold_qemu import ColdQemu
from sandbox.bench.figure import Figure
from sandbox.config import HostConfig
from sandbox.image.store import ImageStore
from sandbox.pool.pool import VMPool

if TYPE_CHECKING:
    from sandbox.bench.suite import Suite

CODE, OUTPUT = "print(1)", "1\n"
_SECONDS = 60.0
_MACHINE = "kernel, files, network, processes"
_PATH = "/usr/bin:/bin"
"""Debian's interpreter, whatever virtual environment we run in: a box that is made of /usr has that one, too."""


Outcome = tuple[str, float]
"""What was printed, and when that was in hand, by the monotonic clock. What is then cleared away does not count."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run a script."""

    id: str
    name: str
    isolates: str
    run: Callable[[], Awaitable[Outcome]]
    is_ours: bool = False
    """Ours must work; any other is left out, with a note, where it does not."""


async def measure_peers(suite: Suite, tell: Callable[[Figure], None]) -> None:
    """Run the same script in every way that this host has, in turn; the first round does not count."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(suite.pool(2))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandbox-peers-")))
        directory.chmod(0o711)
        peers = _peers(suite, pool, directory)
        figures: dict[str, Figure] = {}
        try:
            for peer in list(peers):
                try:
                    await _once(suite, pool, peer)
                except Exception as error:  # a stranger may fail in its own ways
                    if peer.is_ours:
                        raise
                    suite.note(f"{peer.name}: left out, it does not work here: {_reason(error)}")
                    peers.remove(peer)
            for _ in range(suite.n(10)):
                for peer in peers:
                    seconds = await _once(suite, pool, peer)
                    figures.setdefault(peer.id, _figure(suite, peer)).samples.append(seconds)
        finally:
            for figure in figures.values():
                tell(figure)


async def _once(suite: Suite, pool: VMPool, peer: Peer) -> float:
    """Return the seconds that a peer took."""
    await pool.wait_ready()  # refilling it would slow the peer down
    suite.say(f"measuring {peer.name}")
    started = time.monotonic()
    said, ended = await peer.run()
    if said != OUTPUT:
        raise RuntimeError(f"{peer.name} printed {said!r}")
    return ended - started


def _figure(suite: Suite, peer: Peer) -> Figure:
    figure = suite.figure(peer.id, peer.name, "call → result in hand, one line of Python")
    figure.isolates = peer.isolates
    return figure


def _peers(suite: Suite, pool: VMPool, directory: Path) -> list[Peer]:
    template = suite.template
    image = ImageStore(HostConfig().paths.images).find(template.manifest.requirement.image)
    cold = ColdQemu(image, template.host.platform, template.spec.memory_mib, directory)

    async def from_pool() -> Outcome:
        async with pool.acquire() as vm:
            if vm.origin != "hit":
                raise RuntimeError("the pool was full and yet was missed")
            return (await vm.run(CODE)).check().text, time.monotonic()

    async def from_template() -> Outcome:
        async with template.lease() as vm:
            return (await vm.run(CODE)).check().text, time.monotonic()

    peers = [
        Peer("P1", "a VM from the warm pool", _MACHINE, from_pool, is_ours=True),
        Peer("P2", "a fresh clone of the template", _MACHINE, from_template, is_ours=True),
        Peer("P3", "`sandbox exec`, nothing running", _MACHINE, _program(_sandbox_exec(directory)), is_ours=True),
        Peer("P4", "a cold boot of QEMU", _MACHINE, _blocking(lambda: cold.run(CODE)), is_ours=True),
    ]
    python = shutil.which("python3", path=_PATH)
    if python is None:
        suite.note(f"a plain process: left out, there is no python3 in {_PATH}")
        return peers
    peers.append(Peer("P5", "a plain process", "nothing", _program([python, "-c", CODE])))
    if (bubblewrap := shutil.which("bwrap")) is None:
        suite.note("bubblewrap: left out, it is not installed (Debian's package bubblewrap)")
    else:
        peers.append(
            Peer("P6", "bubblewrap", "files, network, processes", _program([*_box(bubblewrap), python, "-c", CODE]))
        )
    try:
        version("quick-sandbox")
    except PackageNotFoundError:
        suite.note("quicksand: left out, it is not installed (quick-sandbox on PyPI)")
    else:
        peers.append(Peer("P7", "quicksand, one shell command", _MACHINE, _quicksand(suite)))
    return peers


def _sandbox_exec(directory: Path) -> list[str]:
    script = directory / "one.py"
    script.write_text(f"{CODE}\n")
    return [sys.executable, "-m", "sandbox", "exec", str(script)]


def _box(bubblewrap: str) -> list[str]:
    """Return bubblewrap's command line for a box with a read-only /usr and nothing else of the host."""
    links = [argument for name in ("bin", "lib", "lib64") for argument in ("--symlink", f"usr/{name}", f"/{name}")]
    mounts = ["--ro-bind", "/usr", "/usr", *links, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108
    return [bubblewrap, "--unshare-all", "--die-with-parent", *mounts]


def _program(command: list[str]) -> Callable[[], Awaitable[Outcome]]:
    def run() -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS).stdout

    return _blocking(run)


def _blocking(run: Callable[[], str]) -> Callable[[], Awaitable[Outcome]]:
    async def wait() -> Outcome:
        return await run_sync(run), time.monotonic()

    return wait


def _quicksand(suite: Suite) -> Callable[[], Awaitable[Outcome]]:
    """Boot its Alpine machine for one command, which is the shell's own: that image has no Python."""
    # Its own probe takes a /dev/kvm that cannot be used for one that can.
    accelerator = "tcg" if suite.template.host.platform.accelerator == "tcg" else "auto"

    async def run() -> Outcome:
        async with import_module("quicksand").Sandbox(image="alpine", accel=accelerator) as box:
            return str((await box.execute("echo 1")).stdout), time.monotonic()

    return run


def _reason(error: Exception) -> str:
    stderr = getattr(error, "stderr", None)
    said = str(stderr or error).strip().splitlines()
    return said[-1] if said else type(error).__name__
