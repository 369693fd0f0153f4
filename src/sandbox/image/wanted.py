"""Long work in a thread, which ends soon after nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar, TypeVarTuple

import anyio
from anyio.to_thread import run_sync

from sandbox.errors import ImageError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_unwanted: ContextVar[threading.Event | None] = ContextVar("sandbox_unwanted", default=None)
"""Set when nobody waits any more for what this thread does; None where whoever calls cannot be cancelled."""


async def while_wanted(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run a blocking function in a worker thread, where `check_wanted` raises once the caller is cancelled.

    A cancelled caller waits for the thread's end, so that nothing of what it made is left.
    """
    unwanted = threading.Event()

    def work() -> T:
        _unwanted.set(unwanted)  # in a copy of the caller's context, for this call
        check_wanted()
        return function(*arguments)

    task = asyncio.create_task(run_sync(work))
    try:
        await asyncio.wait([task])
    except BaseException:
        unwanted.set()
        with anyio.CancelScope(shield=True):  # asyncio's own cancellation knows no shield; the thread then ends alone
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # the caller has gone: nobody else asks for it
        raise
    return task.result()


def check_wanted() -> None:
    """Raise `ImageError` if nobody waits for this thread's work any more."""
    unwanted = _unwanted.get()
    if unwanted is not None and unwanted.is_set():
        raise ImageError("nobody waits for this build any more; start it again when it is wanted")


def pause(seconds: float) -> None:
    """Let some time pass; raise `ImageError` at once when nobody waits for this thread's work any more."""
    unwanted = _unwanted.get()
    if unwanted is None:
        time.sleep(seconds)
    else:
        unwanted.wait(seconds)
        check_wanted()
