"""Driving a coroutine from suspension to suspension, to cancel it at exactly one of them."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class Points:
    """Counts where a coroutine waits, and cancels its task there.

    `at` is the suspension at which it is cancelled, None for never; `again` the one after that, counted from there, at
    which its clean-up is cancelled, too.
    """

    def __init__(self, at: int | None = None, again: int | None = None) -> None:
        self.count = 0
        self._targets = set() if at is None else {at}
        if at is not None and again is not None:
            self._targets.add(at + again)

    async def drive(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine in this task."""
        return await self._drive(coroutine)

    @types.coroutine
    def _drive(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        task = asyncio.current_task()
        assert task is not None
        step, argument = coroutine.send, None
        while True:
            try:
                waited_for = step(argument)
            except StopIteration as done:
                value: T = done.value
                return value
            if self.count in self._targets:
                task.cancel()
            self.count += 1
            try:
                step, argument = coroutine.send, (yield waited_for)
            except BaseException as error:  # noqa: BLE001 - handed to the coroutine, which it is meant for
                step, argument = coroutine.throw, error
