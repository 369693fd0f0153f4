"""How late the event loop is."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_STEP = 0.005
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


class Lag:
    """By how much the loop was late, seen every few milliseconds.

    `own` is without the time for which the loop's thread could have run and the host's processors were busy with
    others. Where emulated VMs use every processor, the whole lateness says how busy the host is, and little of us.
    Waiting for the interpreter's lock counts as our own, also while the thread that has it waits for a processor.
    """

    def __init__(self) -> None:
        self.whole, self.own = Lateness(), Lateness()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Look for the length of the context."""
        schedule = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        task = asyncio.create_task(self._look(schedule), name="lag")
        try:
            yield
        finally:
            task.cancel()
            os.close(schedule)

    async def _look(self, schedule: int) -> None:
        while True:
            before, waited_ms = time.monotonic(), _run_delay_ms(schedule)
            await asyncio.sleep(_STEP)
            late_ms = (time.monotonic() - before - _STEP) * 1e3
            self.whole.add(late_ms)
            self.own.add(late_ms - (_run_delay_ms(schedule) - waited_ms))


def _run_delay_ms(schedule: int) -> float:
    """Return for how long a thread has waited for a processor, in all its life."""
    return int(os.pread(schedule, 100, 0).split()[1]) / 1e6
