"""Blocking calls on files of this host, in worker threads: what they make has an owner even if the caller is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import anyio

from sandbox.hypervisor.threads import telling_shortage

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(function: Callable[[*Ts], T], *arguments: *Ts, drop: Callable[[T], object] | None = None) -> T:
    """Run a blocking function in a worker thread.

    Also a caller that was cancelled waits for the thread, however often and by whomever it is cancelled: no
    descriptor is closed while a thread uses it. What the function has made for such a caller goes to `drop`, in a
    thread as well. Raises `HostResources` when the host has no thread for it.
    """
    # No task: a loop that ends cancels all of them, and the thread would go on.
    with telling_shortage():
        future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        await asyncio.wait([future])
    except asyncio.CancelledError as error:
        cancelled = await _outlast(future, error)
        if future.exception() is None and drop is not None:
            dropping = asyncio.get_running_loop().run_in_executor(None, drop, future.result())  # a thread is free now
            cancelled = await _outlast(dropping, cancelled)
        raise cancelled from None
    return future.result()


async def _outlast(future: asyncio.Future[Any], cancelled: asyncio.CancelledError) -> asyncio.CancelledError:
    """Wait for the thread; return the last cancellation, which decides what becomes of the caller."""
    with anyio.CancelScope(shield=True):
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
    return cancelled
