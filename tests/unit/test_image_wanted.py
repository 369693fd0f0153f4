"""Builds that nobody waits for any more."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync

from sandbox.errors import ImageError
from sandbox.image.command import run_owned
from sandbox.image.lock import build_lock
from sandbox.image.wanted import while_wanted

END_SECONDS = 5.0
Wait = Callable[[], Coroutine[Any, Any, object]]


async def until(happened: threading.Event) -> None:
    assert await run_sync(happened.wait, END_SECONDS)


async def cancelled_scope(wait: Wait, begun: threading.Event) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await until(begun)
        group.cancel_scope.cancel()


async def cancelled_task(wait: Wait, begun: threading.Event) -> None:
    task = asyncio.ensure_future(wait())
    await until(begun)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("cancel", [cancelled_scope, cancelled_task])
async def test_who_waits_for_another_builder_can_be_cancelled(
    tmp_path: Path, cancel: Callable[[Wait, threading.Event], Awaitable[None]]
) -> None:
    """The thread has ended, without the lock, when the cancelled caller goes on."""
    lock, waiting, over = tmp_path / "build.lock", threading.Event(), threading.Event()
    said: list[str] = []

    def build() -> None:
        try:
            with build_lock(lock, waiting.set):
                said.append("built")
        except ImageError as error:
            said.append(str(error))
            raise
        finally:
            over.set()

    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with anyio.fail_after(END_SECONDS):
            await cancel(lambda: while_wanted(build), waiting)
        assert over.is_set()
        assert said == ["nobody waits for this build any more; start it again when it is wanted"]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("cancel", [cancelled_scope, cancelled_task])
async def test_a_command_of_a_build_ends_with_its_caller(
    tmp_path: Path, cancel: Callable[[Wait, threading.Event], Awaitable[None]]
) -> None:
    """No process of it is left when the cancelled caller goes on."""
    begun, fifo = threading.Event(), tmp_path / "alive"
    os.mkfifo(fifo)
    command = ["bash", "-c", 'exec 3>"$0"; echo up >&3; sleep 1000 & wait', str(fifo)]

    def look() -> None:
        with fifo.open() as alive:
            assert alive.readline() == "up\n"
            begun.set()
            left.append(alive.read())

    left: list[str] = []
    reader = threading.Thread(target=look, daemon=True)
    reader.start()
    path = {"PATH": os.environ["PATH"]}
    with anyio.fail_after(END_SECONDS):
        await cancel(lambda: while_wanted(run_owned, command, path, tmp_path / "log", tmp_path), begun)
    reader.join(END_SECONDS)
    assert left == [""], "its end of the pipe is closed when the last process is gone"


async def test_what_is_waited_for_gives_its_result_or_its_error() -> None:
    """Without a cancellation it is a call in a thread."""
    assert await while_wanted(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await while_wanted(divmod, 7, 0)
