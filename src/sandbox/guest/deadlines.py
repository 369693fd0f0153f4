"""The clocks of one execution: its time-out, its silence, and how long the guest may take to obey a kill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sandbox.certificate import Cause


class Deadlines:
    """Calls `stop` with the cause when a time is up. All end with `cancel`."""

    def __init__(self, stop: Callable[[Cause, str], None]) -> None:
        self._stop = stop
        self._timers: list[asyncio.TimerHandle] = []

    def limit(self, seconds: float) -> None:
        why = f"timed out after {seconds:g} s; the whole process tree was killed"
        self._after(seconds, lambda: self._stop(Cause.DEADLINE, why))

    def limit_silence(self, seconds: float, last_sign: Callable[[], float]) -> None:
        """Stop it when `last_sign`, a time as `time.monotonic` counts, is longer ago than this."""

        def check() -> None:
            left = last_sign() + seconds - time.monotonic()
            if left > 0:
                self._after(left, check)
            else:
                self._stop(Cause.IDLE, f"wrote nothing for {seconds:g} s; the whole process tree was killed")

        self._after(seconds, check)

    def limit_dying(self, seconds: float, give_up: Callable[[], None]) -> None:
        self._after(seconds, give_up)

    def cancel(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, call))
