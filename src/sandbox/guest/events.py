"""Following an execution while it runs: typed events, from any offset, with back-pressure."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import anyio

from sandbox.handle import Handle
from sandbox.result import Result
from sandbox.wire import WINDOW_BYTES, Kind

if TYPE_CHECKING:
    from sandbox.guest.execution import Execution

StreamName = Literal["stdout", "stderr"]
NAMES: dict[Kind, StreamName] = {Kind.OUT: "stdout", Kind.ERR: "stderr"}
KINDS: dict[StreamName, Kind] = {name: kind for kind, name in NAMES.items()}
_PIECE_BYTES = 64 * 1024


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


class Events(Handle):
    """Gives what an execution has written and writes, then how it ended.

    Between the streams the order of arrival is kept, except for what was written before the iteration began: that
    comes stream by stream. While somebody iterates slowly, the program is slowed down rather than anything lost; one
    that is being killed is slowed down no longer, and what comes then is read as if it had been written before.
    When the task that iterates is cancelled, the program is slowed down no longer; an iteration that is taken up
    again goes on where it stopped.
    """

    def __init__(self, execution: Execution, offsets: dict[Kind, int]) -> None:
        self._execution = execution
        self._loop = asyncio.get_running_loop()
        self._next = offsets
        self._arrived: deque[tuple[Kind, int, bytes]] = deque()
        self._taken: dict[Kind, int] = {}
        self._backlog: dict[Kind, int] = {}
        self._news = anyio.Event()
        self._task: weakref.ref[asyncio.Task[object]] | None = None
        self._is_following = False
        self._is_started = False
        self._has_ended = False
        self._follow()

    def _follow(self) -> None:
        """Take from now on what arrives; what arrived before is read from the record."""
        self._is_following = True
        self._taken = {kind: self._execution.record.streams[kind].total for kind in NAMES}
        self._backlog = dict(self._taken)
        self._execution.follow(self)

    def floor(self, kind: Kind) -> int:
        """Return up to where a stream was taken: the guest gets no credit beyond one window from here."""
        return self._taken[kind]

    def feed(self, kind: Kind, offset: int, data: bytes) -> None:
        self._arrived.append((kind, offset, data))
        if (end := offset + len(data)) - self._taken[kind] > WINDOW_BYTES:  # only where there is credit for all
            self._leave_to_record(kind, end)

    def _leave_to_record(self, kind: Kind, end: int) -> None:
        """Keep nothing of a stream up to `end`: it is read from the record, as far as that has it."""
        self._arrived = deque(piece for piece in self._arrived if piece[0] is not kind)
        self._taken[kind] = self._backlog[kind] = end

    def wake(self) -> None:
        self._news.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        self._watch_task()
        if not self._is_following and not self._has_ended:
            self._follow()
        while True:
            if self._has_ended:
                raise StopAsyncIteration
            if not self._is_started and self._execution.pid is not None:
                self._is_started = True
                return Started(self._execution.pid)
            if (output := await self._from_backlog()) is not None or (output := self._from_arrived()) is not None:
                return output
            if self._execution.has_ended:
                self._has_ended = True
                self.close()
                return Ended(await self._execution.wait())
            self._news = anyio.Event()
            await self._news.wait()

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
        while self._arrived:
            kind, offset, data = self._arrived.popleft()
            self._taken[kind] = offset + len(data)
            self._execution.settle(kind)
            unwanted = max(0, self._next[kind] - offset)
            if unwanted < len(data):
                self._next[kind] = offset + len(data)
                return Output(NAMES[kind], offset + unwanted, data[unwanted:])
        return None

    def _watch_task(self) -> None:
        task = asyncio.current_task()
        if task is not None and (self._task is None or self._task() is not task):
            self._task = weakref.ref(task)
            task.add_done_callback(partial(_on_task_done, weakref.ref(self)))

    def on_task_done(self, task: asyncio.Task[object]) -> None:
        """Let the program go on if the task that iterated was cancelled: who knows when its last frame is freed."""
        if task.cancelled() and self._task is not None and self._task() is task:
            self.close()

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


def _settle(execution: Execution) -> None:
    for kind in NAMES:
        execution.settle(kind)
