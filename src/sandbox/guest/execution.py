"""The host's view of one execution: what has arrived, what may still be sent, and how it ended."""

from __future__ import annotations

from collections import deque

import anyio
from pydantic import BaseModel, ConfigDict, Field

from sandbox.errors import GuestLost
from sandbox.wire import WINDOW_BYTES, Frame, FrameError, Kind, decode_count

SIGNAL_MAX = 64


class End(BaseModel):
    """The guest's account of how a program ended: data about the program, never trusted for safety."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    code: int | None = Field(ge=0, le=255)
    signal: int | None = Field(ge=1, le=SIGNAL_MAX)
    wall_s: float = Field(ge=0)
    cpu_s: float | None = Field(default=None, ge=0)
    peak_memory_bytes: int | None = Field(default=None, ge=0)
    oom_kills: int = Field(default=0, ge=0)


class Execution:
    """Filled by the client's receiver, emptied by the one task that runs it. Holds at most one window a stream."""

    def __init__(self, ident: int) -> None:
        self.id = ident
        self.end: End | None = None
        self.lost: GuestLost | None = None
        self.stdin_credit = WINDOW_BYTES
        self._chunks: deque[tuple[Kind, bytes]] = deque()
        self._held = {Kind.OUT: 0, Kind.ERR: 0}
        self._changed = anyio.Event()

    def deliver(self, frame: Frame) -> None:
        """Take one frame; raise `FrameError` if an honest guest could not have sent it."""
        if self.end is not None:
            raise FrameError(f"{frame.kind.name} came after the end of execution {self.id}")
        if frame.kind in (Kind.OUT, Kind.ERR):
            self._held[frame.kind] += len(frame.payload)
            if self._held[frame.kind] > WINDOW_BYTES:
                raise FrameError(f"{frame.kind.name} of execution {self.id} overran its window")
            self._chunks.append((frame.kind, frame.payload))
        elif frame.kind is Kind.WINDOW_IN:
            self.stdin_credit += decode_count(frame.payload)
            if self.stdin_credit > WINDOW_BYTES:
                raise FrameError(f"execution {self.id} granted more input than its window")
        elif frame.kind is Kind.EXITED:
            end = End.model_validate_json(frame.payload)
            if (end.code is None) == (end.signal is None):
                raise FrameError("an end has either an exit code or a signal")
            self.end = end
        else:
            raise FrameError(f"{frame.kind.name} does not belong to an execution")
        self._wake()

    def lose(self, error: GuestLost) -> None:
        """The channel is gone: whoever waits gets `error` once the output that did arrive is consumed."""
        if self.end is None and self.lost is None:
            self.lost = error
            self._wake()

    def take(self) -> tuple[Kind, bytes] | None:
        """Return the next piece of output, or None when all that arrived was taken."""
        if not self._chunks:
            return None
        kind, data = self._chunks.popleft()
        self._held[kind] -= len(data)
        return kind, data

    async def wait_changed(self) -> None:
        """Return when something was delivered since this was called."""
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
