"""Two coroutines of one call: what ends either of them ends both, and is raised as itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")
NOT_THEIRS = (asyncio.CancelledError, GeneratorExit)
"""What ends a coroutine from outside. All else that a caller's code raises, `SystemExit` too, is the caller's."""


async def beside(other: Callable[[], Awaitable[object]], main: Callable[[], Awaitable[T]]) -> T:
    """Run both, and return what `main` returns; `other` is cancelled then, if it has not ended.

    The first error of either is raised here, whatever its class. The event loop never sees it: asyncio would let a
    `SystemExit` of a child task end the loop, with everything else in it.
    """
    failures: list[BaseException] = []

    async def run_other() -> None:
        try:
            await other()
        except NOT_THEIRS:
            raise
        except BaseException as error:  # noqa: BLE001 - raised below, outside of the group
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(run_other)
        try:
            result = await main()
        except NOT_THEIRS:
            raise
        except BaseException as error:  # noqa: BLE001 - raised below, outside of the group
            failures.append(error)
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return result
