"""Copies that are cancelled: every descriptor is closed once, and none while a thread uses it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import repeat
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandbox.guest.blocking import in_thread
from sandbox.guest.transfer import download
from tests.fakes.file_guest import FileGuest, data, in_tree, says, stat_of

ROUNDS = 20


def _open_below(top: Path) -> list[str]:
    """Return what this process has open in a directory."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]  # not what listed them
    return [path for link in links if (path := str(link.readlink())).startswith(str(top))]


def _endless(kind: str) -> Callable[[dict[str, Any]], Iterable[bytes]]:
    """Return a guest's script: a file, or a directory with one file, that has no end."""

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        if request["op"] == "stat":
            return [says(stat=stat_of(kind))]
        first = [says(entry=in_tree("file", "a"))] if request["op"] == "pack" else [says(stat=stat_of("file"))]
        return (message for messages in (first, repeat(data(b"x" * 1000))) for message in messages)

    return script


class Gate:
    """Holds a thread that calls a blocking function until it is opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = threading.Event()
        self._loop = asyncio.get_running_loop()

    def hold(self) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self.opened.wait(10)


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_a_cancelled_download_leaves_no_descriptor(tmp_path: Path, kind: str) -> None:
    """In a cancelled scope, whatever was open is closed before the scope is left."""
    guest = FileGuest(_endless(kind))
    for number in range(ROUNDS):
        target = tmp_path / f"{number}"
        made = target / "a" if kind == "directory" else target
        async with anyio.create_task_group() as group:
            group.start_soon(download, guest.files, "it", target)
            while not made.exists() or not made.stat().st_size:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert _open_below(tmp_path) == []
    guest.release()


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("call", ["open", "write"])
async def test_a_thread_is_waited_for(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, kind: str, call: str
) -> None:
    """Cancelled by asyncio, again and again, while a thread opens or writes: what it uses is closed after it."""
    guest, target = FileGuest(_endless(kind)), tmp_path / "copy"
    genuine = getattr(os, call)

    def slow(what: Any, *arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            gate.hold()
            if call == "write":
                assert str(Path(f"/proc/self/fd/{what}").readlink()).startswith(str(target)), "it was closed meanwhile"
        return genuine(what, *arguments, **options)

    monkeypatch.setattr(os, call, slow)
    task = asyncio.ensure_future(download(guest.files, "it", target))
    await gate.reached.wait()
    for _ in range(3):
        task.cancel()
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
    assert not task.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert _open_below(tmp_path) == []
    guest.release()


async def test_what_is_made_for_nobody_is_dropped(gate: Gate) -> None:
    """The result of a call whose caller has gone goes to `drop`; an error of such a call goes nowhere."""
    dropped: list[int] = []

    def make(value: int) -> int:
        gate.hold()
        return 10 // value

    for value in (2, 0):
        gate.opened.clear()
        gate.reached.clear()
        task = asyncio.ensure_future(in_thread(make, value, drop=dropped.append))
        await gate.reached.wait()
        task.cancel()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert dropped == [5]


async def test_the_last_cancellation_counts(gate: Gate) -> None:
    """Who is cancelled by asyncio while a scope's cancellation waits for a thread is not kept alive by the scope."""
    passed = False

    async def caller() -> None:
        nonlocal passed
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await in_thread(gate.hold)
        passed = True

    scopes: list[anyio.CancelScope] = []
    task = asyncio.ensure_future(caller())
    await gate.reached.wait()
    scopes[0].cancel()
    await anyio.lowlevel.checkpoint()
    await anyio.lowlevel.checkpoint()
    task.cancel()
    await anyio.lowlevel.checkpoint()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not passed
