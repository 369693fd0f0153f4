"""The event loop that a pool or a VM belongs to: used from anywhere else, it would hang, so that is refused."""

from __future__ import annotations

import asyncio
import os
import threading

from sandbox.errors import StateError


class Home:
    """The running event loop, its thread and its process, at the time that this is made."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.process = os.getpid()
        self._thread = threading.current_thread()

    def check(self, thing: object) -> None:
        """Raise `StateError` in another loop, and in another thread; in its own one the loop need not run."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self.loop:
            return
        if here is not None or threading.current_thread() is not self._thread:
            where = f"event loop {id(here):#x}" if here is not None else "no event loop"
            raise StateError(
                f"{thing!r} belongs to event loop {id(self.loop):#x} of thread {self._thread.name!r} and was used from "
                f"{where} of thread {threading.current_thread().name!r}; use it where it was made, for example by "
                "`asyncio.run_coroutine_threadsafe`, or use `sandbox.sync`, which any thread may"
            )
