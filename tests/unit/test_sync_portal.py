"""The thread that synchronous callers share: who may wait for it, and what becomes of a result that comes too late."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from sandbox.errors import StateError
from sandbox.sync.portal import Portal
from tests.in_time import SECONDS, in_time

T = TypeVar("T")


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal()
    yield portal
    portal.stop()
    portal._loop.close()


class Interrupted(Future[T]):
    """A result that has just come when its caller is interrupted."""

    def result(self, timeout: float | None = None) -> T:
        result = super().result(timeout)
        if self.__dict__.setdefault("was_asked", False):
            return result
        self.__dict__["was_asked"] = True
        raise KeyboardInterrupt


async def _answer(value: T) -> T:
    return value


def test_call_in_the_portals_own_thread_is_refused(portal: Portal) -> None:
    """It would wait for itself; what does not wait is done at once."""

    async def callback() -> int:
        with pytest.raises(StateError, match="in another thread"):
            portal.call(_answer(1))
        return portal.do(lambda: 2)

    assert in_time(lambda: portal.call(callback())) == 2
    assert portal.call(_answer(3)) == 3


def test_context_that_is_collected_in_the_portals_own_thread_ends(portal: Portal) -> None:
    """Nobody can wait for its end there; it ends nevertheless."""
    ended = threading.Event()

    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        try:
            yield
        finally:
            ended.set()

    async def collect() -> bool:
        held.clear()
        gc.collect()
        return True

    held = [portal.enter(manager())]
    held[0].__enter__()
    assert in_time(lambda: portal.call(collect()))
    assert ended.wait(SECONDS)


def test_result_that_comes_as_its_caller_is_interrupted_is_given_back(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM that was claimed in the very moment of Ctrl-C belongs to nobody, so it goes."""
    monkeypatch.setattr(sys.modules[Portal.__module__], "Future", Interrupted)
    returned, ended = threading.Event(), threading.Event()
    with pytest.raises(KeyboardInterrupt):
        portal.call(_answer(1), give_back=lambda value: returned.set() if value == 1 else None)
    assert returned.wait(SECONDS)

    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        yield
        ended.set()

    with pytest.raises(KeyboardInterrupt), portal.enter(manager()):
        pytest.fail("it is not entered")
    assert ended.wait(SECONDS)
