"""A soak that is told to stop begins no further cycle, lets those that run end, and keeps its evidence."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Set by the first SIGINT or SIGTERM; the second has its usual effect."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None

    @property
    def is_set(self) -> bool:
        return self.by is not None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen for the length of the context."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._set, number)
        try:
            yield
        finally:
            self._listen_no_more()

    def _set(self, number: signal.Signals) -> None:
        self.by = number
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
