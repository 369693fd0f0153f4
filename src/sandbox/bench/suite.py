"""The suite: which figures there are, and the template and pools that they are measured with."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from anyio.to_thread import run_sync

from sandbox.bench import claims, crowd, programs, starts, throughput
from sandbox.bench.figure import Figure
from sandbox.bench.targets import PENDING
from sandbox.config import HostConfig, PoolConfig
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template

Progress = Callable[[str], None]


class Suite:
    """Measures figures on this host. Warm-up runs come first and do not count."""

    def __init__(self, template: Template, samples: int | None, progress: Progress) -> None:
        self.template = template
        self.runtime_dir = HostConfig().runtime_dir
        self._samples = samples
        self._progress = progress
        self._accelerator = template.host.platform.accelerator
        self._measured: dict[str, Figure] = {}
        self.notes: list[str] = []
        """What could not be measured, and why: part of the run's document."""

    def say(self, what: str) -> None:
        """Tell whoever waits what is being done."""
        self._progress(what)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def figure(self, ident: str, name: str, boundary: str, unit: str = "seconds") -> Figure:
        return Figure(ident, name, boundary, unit, self._accelerator)

    def n(self, default: int) -> int:
        return self._samples or default

    async def measured(self, ident: str) -> Figure:
        """Return the figure with this id; measured once, however many are derived from it."""
        if ident not in self._measured:
            self.say(f"measuring {ident}")
            self._measured[ident] = await FIGURES[ident](self)
        return self._measured[ident]

    async def measured_again(self, ident: str) -> Figure:
        """Return the figure with this id, measured now, and whatever it is derived from as well."""
        self._measured.clear()
        return await self.measured(ident)

    def keep(self, figure: Figure) -> None:
        """Take a figure that is measured along with another one."""
        self._measured[figure.id] = figure

    def pool(self, size: int, spare: int = 2, running: int = 4) -> VMPool:
        """Return a pool of warmed clones of the template, not yet open; so many of them are not paused."""
        config = PoolConfig(min_size=size, max_size=size + spare, running_ready=running)
        return VMPool(config, source=self.template.warmed())


async def command(suite: Suite) -> Figure:
    """The whole command line, from nothing running to nothing running."""
    figure = suite.figure("C1", "`sandbox exec hello.py`, nothing running", "process start (T0) → process end")
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "hello.py"
        script.write_text("print('hello')\n")
        argv = [sys.executable, "-m", "sandbox", "exec", str(script)]
        for index in range(suite.n(20) + 1):
            started = time.monotonic()
            done = await run_sync(lambda: subprocess.run(argv, check=True, capture_output=True))
            if done.stdout != b"hello\n":
                raise RuntimeError(f"the command printed {done.stdout!r}")
            if index:
                figure.samples.append(time.monotonic() - started)
    return figure


FIGURES: dict[str, Callable[[Suite], Awaitable[Figure]]] = {
    "B1": starts.cold_boot,
    "B2": starts.minimal_boot,
    "B3": starts.boot_spread,
    "S1": starts.freeze,
    "S3": starts.restore,
    "L1": starts.overhead,
    "S4": starts.restore_and_run,
    "S8PAUSE": starts.pause,
    "S8RESUME": starts.resume,
    "A1": claims.claim,
    "A2": claims.five_claims,
    "A3": claims.claim_and_run,
    "A4": claims.refill,
    "E1": programs.round_trip,
    "E2": claims.ten_agents,
    "E3": throughput.sustained,
    "E4": throughput.burst,
    "E5": claims.workflow,
    "E6UP": programs.upload,
    "E6DOWN": programs.download,
    "E7": programs.overshoot,
    "M1": crowd.idle_memory,
    "M3": crowd.idle_processor,
    "C1": command,
    "C2": programs.memory_per_vm,
    "M2": crowd.many,
}
LONG = frozenset({"M2"})
"""Measured only when asked for by name: it takes minutes and most of the host's memory."""


def pending() -> dict[str, str]:
    """Return the figures that cannot be measured, each with its name and what it lacks."""
    if starts.minimal_image() is not None:
        return PENDING
    return {"B2": "cold boot, minimal kernel; `sandbox image build --kernel minimal` makes one", **PENDING}
