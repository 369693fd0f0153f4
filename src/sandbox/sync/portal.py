"""The event loop that synchronous callers share: one daemon thread per process, started with the first call."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()
_STOP_SECONDS = 10.0


class Portal:
    """Runs coroutines for other threads. A caller that is interrupted waits for its coroutine's clean-up."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sandbox-sync", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result, or raise what it raised."""
        done: Future[T] = Future()

        def start() -> None:
            task = self._loop.create_task(coroutine)
            tasks.append(task)
            task.add_done_callback(lambda task: _hand_over(task, done))

        tasks: list[asyncio.Task[T]] = []
        self._loop.call_soon_threadsafe(start)
        try:
            return done.result()
        except BaseException:
            if not done.done():  # Ctrl-C in this thread: the coroutine goes first, with all that it owns
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())  # noqa: PLW0108 - filled by then
                done.exception()
            raise

    @contextmanager
    def enter(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Hold an asynchronous context in a task of its own, for the length of a synchronous one."""
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

        task, value = self.call(start())
        try:
            yield value
        finally:
            self.call(finish())

    def iterate(self, iterator: AsyncIterator[T]) -> Iterator[T]:
        """Yield what an asynchronous iterator yields."""

        async def step() -> object:
            return await anext(iterator, _END)

        try:
            while (item := self.call(step())) is not _END:
                yield item  # type: ignore[misc]
        finally:
            if isinstance(iterator, AsyncGenerator):
                self.call(iterator.aclose())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)


def _hand_over(task: asyncio.Task[T], done: Future[T]) -> None:
    if task.cancelled():
        done.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())


_lock = threading.Lock()
_portal: Portal | None = None


def portal() -> Portal:
    """Return this process's portal."""
    global _portal  # noqa: PLW0603 - one event loop thread per process
    with _lock:
        if _portal is None:
            _portal = Portal()
            atexit.register(_portal.stop)
        return _portal
