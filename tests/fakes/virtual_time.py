"""An event loop whose clock jumps to the next timer whenever nothing else is to be done."""

from __future__ import annotations

import asyncio
import selectors


class _JumpingSelector(selectors.SelectSelector):
    """Never waits for a timer: it moves the clock instead. Without timers it waits for threads as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Hours pass in milliseconds, in the same order as they would."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for threads for as long as they take: their time is none of this clock's."""
        await super().shutdown_default_executor()

    def run_one_iteration(self) -> None:
        """Run what is ready now; if nothing is, what the next timer makes ready."""
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._clock.now = max(self._clock.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        self.call_soon(self.stop)
        self.run_forever()
