"""Blocking calls off the event loop: in threads of our own, each with a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import anyio
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync

from sandbox.errors import HypervisorError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CALL_SECONDS = 30.0
THREADS = 32
_threads: RunVar[anyio.CapacityLimiter] = RunVar("sandbox_hypervisor_threads")


async def call(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run a blocking function in a worker thread.

    A cancelled caller still waits for the thread, so that ownership of what it makes is never in doubt; a thread
    that exceeds the deadline is given up and `HypervisorError` raised.
    """
    with anyio.CancelScope(shield=True), anyio.move_on_after(CALL_SECONDS):
        return await run_sync(function, *arguments, limiter=limiter(), abandon_on_cancel=True)
    name = getattr(function, "__name__", "call")
    raise HypervisorError(f"libvirt did not answer `{name}` within {CALL_SECONDS:g} s; is its daemon hanging?")


def limiter() -> anyio.CapacityLimiter:
    """Threads of our own, so that a hanging libvirt cannot starve the application's."""
    try:
        return _threads.get()
    except LookupError:
        found = anyio.CapacityLimiter(THREADS)
        _threads.set(found)
        return found
