"""Following an execution while it runs: typed events, from any offset, with back-pressure."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import anyio

from sandbox.errors import GuestLost
from sandbox.handle import Handle
from sandbox.result import Result
from sandbox.wire import WINDOW_BYTES, Kind

if TYPE_CHECKING:
    from sandbox.guest.execution import Execution

StreamName = Literal["stdout", "stderr"]
NAMES: dict[Kind, StreamName] = {Kind.OUT: "stdout", Kind.ERR: "stderr"}
KINDS: dict[StreamName, Kind] = {name: kind for kind, name in NAMES.items()}
_PIECE_BYTES = 64 * 1024
_MOST_AT_ONCE = 100
"""After so many calls others get a turn of the event loop, even if there is more to be given at once."""
LEAVE_SECONDS = 1.0
"""A cancelled iteration that nobody takes up for so long no longer slows the program down."""


@dataclass(frozen=True, slots=True)
class Started:
    """The program has a process in the guest."""

    pid: int


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of output. An `offset` beyond the end of the piece before means that the bytes between were not kept."""

    stream: StreamName
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event."""

    result: Result


Event = Started | Output | Ended


class Arrived:
    """What has arrived and nobody has taken, of both streams, in its order.

    Of each stream one buffer, and the lengths of its pieces in turn: a piece that has a neighbour of its own stream
    becomes part of it. So memory is at most a few times the bytes, however small the pieces came.
    """

    def __init__(self) -> None:
        self._data = {kind: bytearray() for kind in NAMES}
        self._lengths: deque[int] = deque()
        self._first, self._last = Kind.OUT, Kind.OUT

    def __len__(self) -> int:
        return sum(map(len, self._data.values()))

    def add(self, kind: Kind, data: bytes) -> None:
        if not self._lengths:
            self._first = kind
        if self._lengths and kind is self._last:
            self._lengths[-1] += len(data)
        else:
            self._lengths.append(len(data))
        self._last = kind
        self._data[kind] += data

    def take(self, size: int) -> tuple[Kind, bytes] | None:
        """Return the first piece, up to `size` bytes of it, and let go of that; None if there is none."""
        if not self._lengths:
            return None
        kind, length = self._first, self._lengths[0]
        if length > size:
            self._lengths[0] -= size
        else:
            self._lengths.popleft()
            self._first = Kind.ERR if kind is Kind.OUT else Kind.OUT
        buffer = self._data[kind]
        data = bytes(buffer[: min(length, size)])
        del buffer[: len(data)]
        return kind, data

    def clear(self) -> None:
        self._data = {kind: bytearray() for kind in NAMES}
        self._lengths.clear()


class Events(Handle):
    """Gives what an execution has written and writes, then how it ended.

    Between the streams the order of arrival is kept, except for what was written before the iteration began: that
    comes stream by stream. Pieces of one stream that nobody has taken yet come as one. While somebody iterates slowly,
    the program is slowed down rather than anything lost; one that is being killed is slowed down no longer, and what
    comes then is read as if it had been written before.

    A call that was cancelled or timed out has taken nothing: the next one goes on where it stopped. But when the task
    that iterates was cancelled and no other goes on within a second, the program is slowed down no longer, and an
    iteration that is taken up later than that reads what was kept meanwhile.
    """

    def __init__(self, execution: Execution, offsets: dict[Kind, int]) -> None:
        self._execution = execution
        self._loop = asyncio.get_running_loop()
        self._next = offsets
        self._arrived = Arrived()
        self._taken: dict[Kind, int] = {}
        self._backlog: dict[Kind, int] = {}
        self._news = anyio.Event()
        self._task: weakref.ref[asyncio.Task[object]] | None = None
        self._leaving: asyncio.TimerHandle | None = None
        self._is_following = False
        self._is_started = False
        self._has_ended = False
        self._given = 0
        self._follow()

    def _follow(self) -> None:
        """Take from now on what arrives; what arrived before is read from the record."""
        self._is_following = True
        self._leave_to_record()
        self._execution.follow(self)

    def _leave_to_record(self) -> None:
        """Keep nothing of what has arrived: it is read from the record, as far as that has it."""
        self._arrived.clear()
        self._taken = {kind: self._execution.record.streams[kind].total for kind in NAMES}
        self._backlog = dict(self._taken)

    def floor(self, kind: Kind) -> int:
        """Return up to where a stream was taken: the guest gets no credit beyond one window from here."""
        return self._taken[kind]

    def feed(self, kind: Kind, offset: int, data: bytes) -> None:
        if offset + len(data) - self._taken[kind] > WINDOW_BYTES:  # only of a program that nobody slows down any more
            self._leave_to_record()
        elif offset >= self._taken[kind]:  # else it is in the record since the iteration began
            self._arrived.add(kind, data)

    def wake(self) -> None:
        self._news.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Event]:
        self._watch_task()  # the caller's: before Python 3.12 `asyncio.wait_for` makes a task of each call
        return self._give()

    async def _give(self) -> Event:
        if not self._is_following and not self._has_ended:
            self._follow()
        self._given += 1
        if self._given % _MOST_AT_ONCE == 0:
            await asyncio.sleep(0)
        while True:
            if self._has_ended:
                raise StopAsyncIteration
            if not self._is_started and self._execution.pid is not None:
                self._is_started = True
                return Started(self._execution.pid)
            if (output := await self._from_backlog()) is not None or (output := self._from_arrived()) is not None:
                return output
            if self._execution.has_ended:
                return Ended(await self._result())
            if self._news.is_set():  # else others wait for the same event
                self._news = anyio.Event()
            await self._news.wait()

    async def _result(self) -> Result:
        """Return the result; when it was given, or why there is none, the iteration is over."""
        try:
            result = await self._execution.wait()
        except GuestLost:
            self._end()
            raise
        self._end()
        return result

    def _end(self) -> None:
        self._has_ended = True
        self.close()

    async def _from_backlog(self) -> Output | None:
        for kind, end in self._backlog.items():
            if (offset := self._next[kind]) < end:
                wanted = min(_PIECE_BYTES, end - offset)
                begin, data = await self._execution.record.streams[kind].read(offset, wanted)
                data = data[: max(0, end - begin)]
                self._next[kind] = begin + len(data) if data else end
                if data:
                    return Output(NAMES[kind], begin, data)
        return None

    def _from_arrived(self) -> Output | None:
        while (piece := self._arrived.take(_PIECE_BYTES)) is not None:
            kind, data = piece
            offset = self._taken[kind]
            self._taken[kind] = offset + len(data)
            self._execution.settle(kind)
            unwanted = max(0, self._next[kind] - offset)
            if unwanted < len(data):
                self._next[kind] = offset + len(data)
                return Output(NAMES[kind], offset + unwanted, data[unwanted:])
        return None

    def _watch_task(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        task = asyncio.current_task()
        if task is not None and (self._task is None or self._task() is not task):
            self._task = weakref.ref(task)
            task.add_done_callback(partial(_on_task_done, weakref.ref(self)))

    def on_task_done(self, task: asyncio.Task[object]) -> None:
        """Let the program go on if the task that iterated was cancelled: who knows when its last frame is freed.

        Not at once: another task may take the next step, where each step has one of its own.
        """
        if task.cancelled() and self._task is not None and self._task() is task and self._is_following:
            self._leaving = self._loop.call_later(LEAVE_SECONDS, _close, weakref.ref(self))

    def close(self) -> None:
        """Stop following. The program is no longer slowed down by this iteration."""
        self._is_following = False
        self._arrived.clear()
        self._execution.unfollow(self)

    async def aclose(self) -> None:
        self.close()

    def __del__(self) -> None:
        """An iteration that was left without `close` does not slow the program down for ever."""
        if self._is_following and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_settle, self._execution)


def _on_task_done(events: weakref.ref[Events], task: asyncio.Task[object]) -> None:
    if (living := events()) is not None:
        living.on_task_done(task)


def _close(events: weakref.ref[Events]) -> None:
    if (living := events()) is not None:
        living.close()


def _settle(execution: Execution) -> None:
    for kind in NAMES:
        execution.settle(kind)
