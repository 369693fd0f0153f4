"""How late the event loop is."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_STEP = 0.005
_WITNESS_STEP, _NOTEWORTHY = 0.01, 0.02
_KEPT, _FRAMES = 5, 8
_BUCKET_MS = 0.1
_BUCKETS = 10_000


class Lateness:
    """A histogram, because a list would grow."""

    def __init__(self) -> None:
        self.worst_ms = 0.0
        self._counts = array("Q", bytes(8 * _BUCKETS))

    def add(self, late_ms: float) -> None:
        self.worst_ms = max(self.worst_ms, late_ms)
        self._counts[min(_BUCKETS - 1, max(0, int(late_ms / _BUCKET_MS)))] += 1

    @property
    def p99_ms(self) -> float:
        """So late, in milliseconds, it was at most in 99 of 100 cases."""
        left = sum(self._counts) * 99 // 100
        for at, count in enumerate(self._counts):
            left -= count
            if left < 0:
                return (at + 1) * _BUCKET_MS
        return 0.0


@dataclass(frozen=True)
class Moment:
    """What was seen of one time at which the loop was late; times are milliseconds."""

    late: float
    waited: float
    """For so long the loop's thread could have run, and others had the processors."""
    ran: float
    others_ran: float
    """All other threads of this process together, libvirt's among them."""
    collected: float
    """In CPython's garbage collector, whichever thread it came upon."""
    where: tuple[str, ...]
    """The loop's innermost frames, looked up by another thread meanwhile; nothing if that one got no turn either."""

    @property
    def own(self) -> float:
        return self.late - self.waited


class Lag:
    """By how much the loop was late, seen every few milliseconds.

    `own` is without the time for which the loop's thread could have run and the host's processors were busy with
    others. Where emulated VMs use every processor, the whole lateness says how busy the host is, and little of us.
    Waiting for the interpreter's lock counts as our own, also while the thread that has it waits for a processor.
    `worst` has the moments of the largest `own`.
    """

    def __init__(self) -> None:
        self.whole, self.own = Lateness(), Lateness()
        self.worst: list[Moment] = []
        self._looked, self._collected, self._collects_since = 0.0, 0.0, 0.0
        self._where: tuple[str, ...] = ()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Look for the length of the context."""
        schedule = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        over, self._looked = threading.Event(), time.monotonic()
        witness = threading.Thread(
            target=self._witness, args=(threading.get_ident(), over), name="witness", daemon=True
        )
        task = asyncio.create_task(self._look(schedule), name="lag")
        gc.callbacks.append(self._see_collection)
        witness.start()
        try:
            yield
        finally:
            gc.callbacks.remove(self._see_collection)
            over.set()
            task.cancel()
            os.close(schedule)
            await asyncio.to_thread(witness.join)

    async def _look(self, schedule: int) -> None:
        while True:
            self._where = ()
            before, self._looked = _Clocks.read(schedule, self._collected), time.monotonic()
            await asyncio.sleep(_STEP)
            late = (time.monotonic() - self._looked - _STEP) * 1e3
            moment = _Clocks.read(schedule, self._collected).since(before, late, self._where)
            self.whole.add(late)
            self.own.add(moment.own)
            self.worst = sorted([*self.worst, moment], key=lambda each: -each.own)[:_KEPT]

    def _witness(self, loop: int, over: threading.Event) -> None:
        while not over.wait(_WITNESS_STEP):
            if time.monotonic() - self._looked - _STEP > _NOTEWORTHY and not self._where:
                self._where = tuple(_frames(sys._current_frames().get(loop)))

    def _see_collection(self, phase: str, _: dict[str, int]) -> None:
        now = time.monotonic()
        if phase == "start":
            self._collects_since = now
        else:
            self._collected += now - self._collects_since


@dataclass(frozen=True)
class _Clocks:
    """What a thread, its process and the collector had used up at one time, in milliseconds."""

    waited: float
    ran: float
    process_ran: float
    collected: float

    @classmethod
    def read(cls, schedule: int, collected: float) -> _Clocks:
        """Ask in the thread itself: the kernel's file has what it ran only as of the last tick."""
        waited = int(os.pread(schedule, 100, 0).split()[1])
        return cls(waited / 1e6, time.thread_time() * 1e3, time.process_time() * 1e3, collected * 1e3)

    def since(self, before: _Clocks, late: float, where: tuple[str, ...]) -> Moment:
        ran = self.ran - before.ran
        others = max(0.0, self.process_ran - before.process_ran - ran)
        return Moment(late, self.waited - before.waited, ran, others, self.collected - before.collected, where)


def _frames(frame: FrameType | None) -> Iterator[str]:
    for _ in range(_FRAMES):
        if frame is None:
            return
        yield f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
