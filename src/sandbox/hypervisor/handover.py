"""Passing something that must be ended from a thread to a task that may have stopped waiting."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from sandbox.errors import HypervisorError

T = TypeVar("T")


class Handover(Generic[T]):
    """Decides, once and under a lock, which side owns the result: at every instant exactly one does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_abandoned = False
        self._value: T | None = None

    def offer(self, value: T) -> None:
        """Give the value away; raise `HypervisorError` when the taker is gone: the giver still owns it then."""
        with self._lock:
            if self._is_abandoned:
                raise HypervisorError("nobody waits for this VM any more")
            self._value = value

    def abandon(self) -> T | None:
        """Declare that nobody waits; return the value if it was offered before: the caller owns it now."""
        with self._lock:
            self._is_abandoned = True
            return self._value
