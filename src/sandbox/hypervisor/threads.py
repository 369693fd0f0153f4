"""Blocking calls off the event loop: in threads of our own, each with a deadline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeVar, TypeVarTuple

import anyio
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync

from sandbox.errors import HostResources, HypervisorError
from sandbox.log import log

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CALL_SECONDS = 30.0
_AGAIN_SECONDS = 0.5
_NO_THREAD = "can't start new thread"
"""What CPython says when the kernel gives it none; there is no class of exceptions for it."""
THREADS = 32
_waiting: RunVar[list[Callable[[], object]]] = RunVar("sandbox_waiting_for_a_thread")
_threads: RunVar[anyio.CapacityLimiter] = RunVar("sandbox_hypervisor_threads")


async def call(function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Run a blocking function in a worker thread.

    A cancelled caller still waits for the thread, so that ownership of what it makes is never in doubt; a thread
    that exceeds the deadline is given up and `HypervisorError` raised. `HostResources` says that the host has no thread
    for it, or for one that it starts.
    """
    with telling_shortage(), anyio.CancelScope(shield=True), anyio.move_on_after(CALL_SECONDS):
        return await run_sync(function, *arguments, limiter=limiter(), abandon_on_cancel=True)
    name = getattr(function, "__name__", "call")
    raise HypervisorError(f"libvirt did not answer `{name}` within {CALL_SECONDS:g} s; is its daemon hanging?")


@contextmanager
def telling_shortage() -> Iterator[None]:
    """Raise `HostResources` when a thread that is wanted within the context cannot be had."""
    try:
        yield
    except RuntimeError as error:
        if _NO_THREAD not in str(error):
            raise
        raise HostResources(
            "no room for another thread; `ulimit -u`, and the limit of processes of a container or service, count them"
        ) from error


def soon(function: Callable[[*Ts], object], *arguments: *Ts) -> None:
    """Run a blocking function in a thread that nobody waits for, as soon as the host has one.

    When the event loop ends before that, it is not run: what is left of this process's VMs ends with the process.
    """
    if _start(function, *arguments):
        return
    try:
        loop, backlog = asyncio.get_running_loop(), _backlog()
    except RuntimeError:  # it has ended
        return
    backlog.append(partial(function, *arguments))
    if len(backlog) == 1:
        log.warning("no_thread", wanted_for=getattr(function, "__name__", "call"))
        loop.call_later(_AGAIN_SECONDS, _work_off, loop, backlog)


def _work_off(loop: asyncio.AbstractEventLoop, backlog: list[Callable[[], object]]) -> None:
    """Have one thread do all that waits: many at once could be the next shortage."""
    if _start(_do_all, list(backlog)):
        backlog.clear()
    else:
        loop.call_later(_AGAIN_SECONDS, _work_off, loop, backlog)


def _do_all(calls: list[Callable[[], object]]) -> None:
    with ExitStack() as stack:  # whatever becomes of one, the others are done
        for call in reversed(calls):
            stack.callback(call)


def _start(function: Callable[[*Ts], object], *arguments: *Ts) -> bool:
    try:
        threading.Thread(target=function, args=arguments, daemon=True).start()
    except RuntimeError as error:
        if _NO_THREAD not in str(error):
            raise
        return False
    return True


def _backlog() -> list[Callable[[], object]]:
    try:
        return _waiting.get()
    except LookupError:
        _waiting.set([])
        return _waiting.get()


def limiter() -> anyio.CapacityLimiter:
    """Threads of our own, so that a hanging libvirt cannot starve the application's."""
    try:
        return _threads.get()
    except LookupError:
        found = anyio.CapacityLimiter(THREADS)
        _threads.set(found)
        return found
