"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_STEP = 0.005
_BUCKET_MS = 0.1
_BUCKETS = 10_000


class Lag:
    """By how much the loop was late, seen every few milliseconds; a histogram, because a list would grow."""

    def __init__(self) -> None:
        self.worst_ms = 0.0
        self._counts = array("Q", bytes(8 * _BUCKETS))

    @property
    def p99_ms(self) -> float:
        """So late, in milliseconds, it was at most in 99 of 100 cases."""
        left = sum(self._counts) * 99 // 100
        for at, count in enumerate(self._counts):
            left -= count
            if left < 0:
                return (at + 1) * _BUCKET_MS
        return 0.0

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Look for the length of the context."""
        task = asyncio.create_task(self._look(), name="lag")
        try:
            yield
        finally:
            task.cancel()

    async def _look(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(_STEP)
            late_ms = (time.monotonic() - before - _STEP) * 1e3
            self.worst_ms = max(self.worst_ms, late_ms)
            self._counts[min(_BUCKETS - 1, max(0, int(late_ms / _BUCKET_MS)))] += 1
