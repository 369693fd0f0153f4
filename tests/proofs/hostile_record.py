"""What a process with hostile and honest VMs was seen to hold, how its calls went, and the verdict."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from tests.proofs.honest_caller import Calls
from tests.proofs.hostile_lives import Lives
from tests.soak.lag import Lag
from tests.soak.sample import Sample, growth, leaks

_LOOKS_EVERY = 0.25
WORSE = 2.0
"""The slowest calls may take this many times as long as beside VMs that only burn processor time."""
ENOUGH = 2000
"""The p99 of fewer calls than this is the machine's mood: it is told, and the p95 has to do."""
LATEST_MS = 10.0


@dataclass
class Held:
    """The most that was held at one time, in bytes."""

    memory: int = 0
    """Resident, beyond what it was before the hostile VMs."""
    directory: int = 0
    """On the disk, in the run directory."""
    spilled: int = 0
    """On the disk, in files without a name."""

    @asynccontextmanager
    async def watch(self, directory: Path) -> AsyncIterator[None]:
        """Look several times a second."""
        before = await asyncio.to_thread(_resident)
        task = asyncio.create_task(self._look(directory, before), name="held")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _look(self, directory: Path, before: int) -> None:
        while True:
            await asyncio.to_thread(self._see, directory, before)
            await anyio.sleep(_LOOKS_EVERY)

    def _see(self, directory: Path, before: int) -> None:
        self.memory = max(self.memory, _resident() - before)
        self.directory = max(self.directory, sum(_blocks(path) for path in directory.rglob("*")))
        self.spilled = max(self.spilled, _nameless(tempfile.gettempdir()))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _blocks(path: Path, *, follow: bool = False) -> int:
    try:
        return path.stat(follow_symlinks=follow).st_blocks * 512
    except OSError:  # gone meanwhile
        return 0


def _nameless(directory: str) -> int:
    """Return what this process's open files without a name have on a disk."""
    opened = ((path, _target(path)) for path in Path("/proc/self/fd").iterdir())
    return sum(
        _blocks(path, follow=True)
        for path, target in opened
        if target.startswith(f"{directory}/") and target.endswith(" (deleted)")
    )


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


class _Errors(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(f"logged by {record.name}: {record.getMessage()}")


@contextmanager
def nothing_uncaught(said: list[str]) -> Iterator[None]:
    """Note what reaches the event loop's handler, the interpreter's hooks, or a log at the level of an error."""
    loop, errors = asyncio.get_running_loop(), _Errors(said)
    before = loop.get_exception_handler(), sys.unraisablehook, threading.excepthook
    loop.set_exception_handler(lambda _, context: said.append(f"in the event loop: {context}"))
    sys.unraisablehook = lambda unraisable: said.append(f"unraisable: {unraisable.exc_value!r} {unraisable.object!r}")
    threading.excepthook = lambda failed: said.append(f"in a thread: {failed.exc_value!r}")
    logging.getLogger().addHandler(errors)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(errors)
        loop.set_exception_handler(before[0])
        sys.unraisablehook, threading.excepthook = before[1:]


@dataclass
class Record:
    """All of it; `save` keeps it as evidence."""

    seed: str
    wanted_seconds: float
    hostile: int
    """VMs at a time."""
    memory_bytes: int
    """What one hostile VM may make this process keep, beside what its run directory holds."""
    directory_bytes: int
    spilled_bytes: int
    environment: dict[str, object]
    rounds: int = 0
    seconds: float = 0.0
    beside_silent: Calls = field(default_factory=Calls)
    beside_hostile: Calls = field(default_factory=Calls)
    lag_silent: Lag = field(default_factory=Lag)
    lag_hostile: Lag = field(default_factory=Lag)
    lives: Lives = field(default_factory=Lives)
    held: Held = field(default_factory=Held)
    samples: list[Sample] = field(default_factory=list)
    uncaught: list[str] = field(default_factory=list)

    @property
    def ratios(self) -> dict[str, float]:
        """Return by how much longer calls took than beside silent VMs."""
        return {
            f"p{each}": round(self.beside_hostile.percentile(each) / self.beside_silent.percentile(each), 2)
            for each in (50, 95, 99)
        }

    @property
    def _has_enough(self) -> bool:
        return min(self.beside_silent.count, self.beside_hostile.count) >= ENOUGH

    def verdict(self) -> list[str]:
        """Return what speaks against it; nothing if it holds."""
        bounds = {
            "memory": (self.held.memory, self.memory_bytes),
            "run directory": (self.held.directory, self.directory_bytes),
            "spilled output": (self.held.spilled, self.spilled_bytes),
        }
        over = [f"{name}: {held} bytes, {most * self.hostile} are the bound" for name, (held, most) in bounds.items()
                if held > most * self.hostile]  # fmt: skip
        if self.ratios["p95"] >= WORSE or (self.ratios["p99"] >= WORSE and self._has_enough):
            over.append(f"honest calls took {self.ratios} times as long as beside silent VMs")
        if self.lag_hostile.own.p99_ms >= LATEST_MS:
            over.append(f"the loop was late by {self.lag_hostile.own.p99_ms:.1f} ms (p99)")
        wrong = [*self.beside_silent.wrong, *self.beside_hostile.wrong, *self.lives.wrong]
        return [*wrong, *self.uncaught, *over, *(f"left behind: {line}" for line in leaks(self.samples))]

    def document(self) -> dict[str, object]:
        """Return the evidence."""
        against = self.verdict()
        return {
            "verdict": "failed" if against else "holds",
            "against": against[:100],
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "wanted_seconds": self.wanted_seconds,
            "rounds": self.rounds,
            "environment": self.environment,
            "hostile_vms_at_a_time": self.hostile,
            "lives": self.lives.count,
            "lives_by_end": dict(self.lives.ends),
            "calls_to_hostile": dict(sorted(self.lives.calls.items())),
            "honest_beside_silent": self.beside_silent.figures(),
            "honest_beside_hostile": self.beside_hostile.figures(),
            "ratios": self.ratios,
            "loop_late_ms": {
                name: {"p99": round(late.p99_ms, 1), "worst": round(late.worst_ms, 1)}
                for name, late in (
                    ("silent", self.lag_silent.whole), ("silent, own", self.lag_silent.own),
                    ("hostile", self.lag_hostile.whole), ("hostile, own", self.lag_hostile.own),
                )
            },
            "most_held_bytes": vars(self.held),
            "bounds_bytes_per_vm": {
                "memory": self.memory_bytes, "directory": self.directory_bytes, "spilled": self.spilled_bytes,
            },
            "growth": growth(self.samples),
            "samples": [sample.as_row() for sample in self.samples[:3] + self.samples[-3:]],
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(self.document(), indent=1) + "\n")
        fresh.replace(path)
