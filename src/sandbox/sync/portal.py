"""The event loop that synchronous callers share: one daemon thread per process, started with the first call."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from enum import Enum
from typing import Any, TypeVar

from sandbox.errors import StateError
from sandbox.guest.events import Events
from sandbox.log import log
from sandbox.pool.pool import VMPool

T = TypeVar("T")
_STOP_SECONDS = 10.0
_ENDED = (
    "the event loop of `sandbox.sync` has ended, as it does when the process exits; close pools, and let calls in "
    "other threads end, before that"
)


class End(Enum):
    """That an iterator has no more: no item is one."""

    END = 0


class Portal:
    """Runs coroutines for other threads. A caller that is interrupted waits for its coroutine's clean-up.

    What a coroutine raises is raised in its caller's thread, `SystemExit` and `KeyboardInterrupt` too: they end
    nobody's call but that one. When the thread ends all the same, every call that it owes an answer fails.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._owed: set[Future[Any]] = set()
        self._has_ended = False
        self._is_stopping = False
        self._pools: weakref.WeakSet[VMPool] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._serve, name="sandbox-sync", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while not self._is_stopping:
                self._run_loop()
        finally:
            self._refuse()

    def _run_loop(self) -> None:
        """Run the event loop until it is told to stop, by us or by somebody's callback."""
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:  # of a callback that is nobody's call; asyncio lets it through
            log.error("exit_in_event_loop", error=repr(error))

    @property
    def is_running(self) -> bool:
        """Whether this process has the thread that runs coroutines: a forked child has not."""
        return self._thread.is_alive() and self._process == os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether the caller is the thread that runs coroutines: a callback's, or that of a hook."""
        return threading.current_thread() is self._thread

    def call(self, coroutine: Coroutine[Any, Any, T], *, give_back: Callable[[T], object] | None = None) -> T:
        """Run a coroutine to its end and return its result, or raise what it raised.

        A result that is there when its caller is interrupted goes to `give_back`. Raises `StateError` in a child that
        was forked: the thread that would run it is its parent's. In that thread itself, too, which cannot wait for
        what it has to run. And when that thread has ended, as it does when the process exits.
        """
        done: Future[T] = Future()
        try:
            self._owe(done)
        except StateError:
            coroutine.close()
            raise

        def start() -> None:
            task = self._loop.create_task(_caught(coroutine))
            tasks.append(task)
            task.add_done_callback(lambda task: _hand_over(task, done))

        def cancel() -> None:
            if tasks:  # else the loop has ended
                tasks[0].cancel()

        tasks: list[asyncio.Task[T | _Raised]] = []
        try:
            self._loop.call_soon_threadsafe(start)
            return done.result()
        except BaseException:
            if not done.done():  # Ctrl-C in this thread: the coroutine goes first, with all that it owns
                self._loop.call_soon_threadsafe(cancel)
            if done.exception() is None and give_back is not None:
                self._loop.call_soon_threadsafe(give_back, done.result())
            raise
        finally:
            with self._lock:
                self._owed.discard(done)

    def _owe(self, done: Future[T]) -> None:
        """Take a call; raise `StateError` if it could not be answered."""
        if self.is_here:
            raise StateError(
                "a callback or hook made a call of `sandbox.sync` that waits, in the thread that all such calls wait "
                "for: keep what it was given, and make the call in another thread; to answer a program while it "
                "runs, start it with `spawn` and iterate over its `events()`"
            )
        if self._process != os.getpid():
            raise StateError(
                "the event loop of `sandbox.sync` does not run in this process, which was forked from one that uses "
                "it: start this one with `subprocess`, or with multiprocessing's `spawn` or `forkserver`"
            )
        with self._lock:
            if self._has_ended:
                raise StateError(_ENDED)
            self._owed.add(done)

    def do(self, function: Callable[[], T], *, give_back: Callable[[T], object] | None = None) -> T:
        """Run a function that does not wait where coroutines run; at once if that is here, so callbacks may ask."""
        if self.is_here:
            return function()

        async def run() -> T:
            return function()

        return self.call(run(), give_back=give_back)

    @contextmanager
    def enter(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Hold an asynchronous context in a task of its own, for the length of a synchronous one.

        One that the garbage collector ends in the portal's own thread is left without waiting for its end.
        """
        entered: asyncio.Future[T] = self._loop.create_future()
        leave = asyncio.Event()

        async def hold() -> None:
            try:
                async with manager as value:
                    entered.set_result(value)
                    await leave.wait()
            except BaseException as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        async def start() -> tuple[asyncio.Task[None], T]:
            task = asyncio.create_task(hold())
            try:
                return task, await entered
            except BaseException:
                task.cancel()
                await asyncio.wait([task])
                raise

        async def finish() -> None:
            leave.set()
            await task

        task, value = self.call(start(), give_back=lambda _: leave.set())
        try:
            yield value
        finally:
            if self.is_here:
                leave.set()
            elif self.is_running:  # else this is a forked child's copy of its parent's context
                self.call(finish())

    def keep(self, pool: VMPool) -> VMPool:
        """Have `close` close this pool, if it is still there; return it."""
        self._pools.add(pool)
        return pool

    def close(self) -> None:
        """End what runs here, in order: pools and their VMs, then calls of other threads, then the thread.

        When it is called, the process can still start threads, and libvirt is still there.
        """
        if not self.is_running or self._is_stopping:
            return
        self._refuse()
        ending = asyncio.run_coroutine_threadsafe(self._end_all(), self._loop)
        with suppress(TimeoutError):  # the hypervisor kills what is left
            ending.result(_STOP_SECONDS)
        self.stop()

    async def _end_all(self) -> None:
        pools = list(self._pools)
        for pool in pools:
            pool.close_nowait()
        await asyncio.gather(*(pool.aclose() for pool in pools), return_exceptions=True)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _refuse(self) -> None:
        """Take no more calls, and fail those that wait."""
        with self._lock:
            self._has_ended = True
            owed = list(self._owed)
        for done in owed:
            with suppress(InvalidStateError):
                done.set_exception(StateError(_ENDED))

    def stop(self) -> None:
        """Let the thread end; whoever waits for a call gets `StateError`. May be called twice."""
        self._is_stopping = True
        if self.is_running:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_SECONDS)


class Iteration(Iterator[T]):
    """Yields what an asynchronous iterator yields.

    One that is left before its end needs no `close`: what it iterates over ends itself when nobody holds it. It waits
    for nothing then, because the garbage collector may come upon it in any thread, the portal's own among them.
    """

    def __init__(self, portal: Portal, iterator: AsyncIterator[T]) -> None:
        self._portal = portal
        self._iterator = iterator

    def __next__(self) -> T:
        async def step() -> T | End:
            return await anext(self._iterator, End.END)

        if isinstance(item := self._portal.call(step()), End):
            raise StopIteration
        return item

    def close(self) -> None:
        """End the iteration now, and wait until it has ended."""

        async def close() -> None:
            if isinstance(self._iterator, AsyncGenerator | Events):
                await self._iterator.aclose()

        self._portal.call(close())


class _Raised:
    """What a coroutine has raised that asyncio would not keep in its task but let through, to the end of the loop."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _caught(coroutine: Coroutine[Any, Any, T]) -> T | _Raised:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        return _Raised(error)


def _hand_over(task: asyncio.Task[T | _Raised], done: Future[T]) -> None:
    if done.done():
        return
    if task.cancelled():
        done.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    elif isinstance(result := task.result(), _Raised):
        done.set_exception(result.error)
    else:
        done.set_result(result)


_lock = threading.Lock()
_portal: Portal | None = None


def portal() -> Portal:
    """Return this process's portal."""
    global _portal  # noqa: PLW0603 - one event loop thread per process
    with _lock:
        if _portal is None:
            _portal = Portal()
            _call_at_exit(_portal.close)
        return _portal


def _call_at_exit(function: Callable[[], None]) -> None:
    """Call it when the main thread has ended, while executors still take work; `atexit` comes after they are shut down.

    This is what `concurrent.futures` itself uses, and the last to be registered is called first.
    """
    import concurrent.futures.thread  # noqa: F401, PLC0415 - registers its own hook, which has to come later than ours

    getattr(threading, "_register_atexit", atexit.register)(function)
