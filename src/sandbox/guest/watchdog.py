"""Whether a guest in which something runs still lives: silent for long, it is asked; silent again, it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SILENCE_SECONDS = 5.0
"""A guest in which something runs, and that said nothing for so long, is asked for a sign of life, and has as long."""


class Watchdog:
    """Looks at one guest from `watch` on, as long as `is_needed`; ends with `stop`."""

    def __init__(self, is_needed: Callable[[], bool], ask: Callable[[], None], give_up: Callable[[str], None]) -> None:
        self.unanswered = 0
        """How often it was asked and has not answered yet."""
        self.times_heard = 0
        self._is_needed = is_needed
        self._ask = ask
        self._give_up = give_up
        self._timer: asyncio.TimerHandle | None = None
        self._heard = False
        self._was_asked = False

    def watch(self) -> None:
        """Look at it from now on, unless that is so already."""
        if self._timer is None:
            self._heard, self._was_asked = True, False
            self._again()

    def hear(self) -> None:
        """It has said something, whatever it was."""
        self._heard = True
        self.times_heard += 1

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SILENCE_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._is_needed():
            return
        if not self._heard and self._was_asked:
            self._give_up(f"the guest gave no sign of life for {2 * SILENCE_SECONDS:g} s; its VM is destroyed")
            return
        self._was_asked = not self._heard
        if self._was_asked:
            self.unanswered += 1
            self._ask()
        self._heard = False
        self._again()
