"""The clocks of one execution: its time-out, its silence, and how long the guest may take to obey a kill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sandbox.certificate import Cause

MOST_PATIENCE = 3
_STEPS = 8


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

    def limit_dying(self, seconds: float, times_heard: Callable[[], int], give_up: Callable[[], None]) -> None:
        """Call `give_up` when the guest has had this long to obey a kill.

        Time counts in steps, and only where a silent guest can be told from a busy host: not a step in which something
        came from the guest, nor one whose end this event loop came to late. After `MOST_PATIENCE` times as long it is
        given up in any case, because a guest that does not obey may also go on talking.
        """
        loop = asyncio.get_running_loop()
        step, end = seconds / _STEPS, loop.time() + MOST_PATIENCE * seconds

        def check(left: int, due: float, heard: int) -> None:
            now, news = loop.time(), times_heard()
            left -= news == heard and now < due + step
            if left <= 0 or now >= end:
                give_up()
            else:
                wait(left, now, news)

        def wait(left: int, now: float, heard: int) -> None:
            due = min(now + step, end)
            self._timers.append(loop.call_at(due, check, left, due, heard))

        wait(_STEPS, loop.time(), times_heard())

    def cancel(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, call))
