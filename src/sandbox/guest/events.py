"""Following an execution while it runs: typed events, from any offset, with back-pressure."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio

from sandbox.result import Result
from sandbox.wire import Kind

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


class Events:
    """Gives what an execution has written and writes, then how it ended.

    Between the streams the order of arrival is kept, except for what was written before the iteration began: that
    comes stream by stream. While somebody iterates slowly, the program is slowed down rather than anything lost.
    """

    def __init__(self, execution: Execution, offsets: dict[Kind, int]) -> None:
        self._execution = execution
        self._arrived: deque[tuple[Kind, int, bytes]] = deque()
        self._taken = {kind: execution.record.streams[kind].total for kind in NAMES}
        self._backlog = {kind: (offset, self._taken[kind]) for kind, offset in offsets.items()}
        self._news = anyio.Event()
        self._is_started = False
        self._has_ended = False
        execution.follow(self)

    def floor(self, kind: Kind) -> int:
        """Return up to where a stream was taken: the guest gets no credit beyond one window from here."""
        return self._taken[kind]

    def feed(self, kind: Kind, offset: int, data: bytes) -> None:
        self._arrived.append((kind, offset, data))

    def wake(self) -> None:
        self._news.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._has_ended:
                raise StopAsyncIteration
            if not self._is_started and self._execution.pid is not None:
                self._is_started = True
                return Started(self._execution.pid)
            if (output := await self._from_backlog() or self._from_arrived()) is not None:
                return output
            if self._execution.has_ended:
                self._has_ended = True
                self.close()
                return Ended(await self._execution.wait())
            self._news = anyio.Event()
            await self._news.wait()

    async def _from_backlog(self) -> Output | None:
        for kind, (offset, end) in self._backlog.items():
            if offset < end:
                wanted = min(_PIECE_BYTES, end - offset)
                begin, data = await self._execution.record.streams[kind].read(offset, wanted)
                data = data[: max(0, end - begin)]
                self._backlog[kind] = (begin + len(data) if data else end, end)
                if data:
                    return Output(NAMES[kind], begin, data)
        return None

    def _from_arrived(self) -> Output | None:
        if not self._arrived:
            return None
        kind, offset, data = self._arrived.popleft()
        self._taken[kind] = offset + len(data)
        self._execution.settle(kind)
        return Output(NAMES[kind], offset, data)

    def close(self) -> None:
        """Stop following. The program is no longer slowed down by this iteration."""
        self._execution.unfollow(self)

    async def aclose(self) -> None:
        self.close()
