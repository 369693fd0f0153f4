"""What a program writes, as it arrives: recorded, passed to followers, and credited to the guest as it is taken."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

from sandbox.guest.output import Record
from sandbox.wire import GRANT_BYTES, OUTPUTS, WINDOW_BYTES, FrameError, Kind, window


class Follower(Protocol):
    """Somebody who takes output as it comes."""

    def floor(self, kind: Kind) -> int: ...
    def feed(self, kind: Kind, offset: int, data: bytes) -> None: ...
    def wake(self) -> None: ...


class AnswerSink(Protocol):
    """Who reads a server's control stream."""

    @property
    def taken(self) -> int: ...

    def feed(self, data: bytes) -> None: ...
    def wake(self) -> None: ...


class Intake:
    """The streams out of one program. The guest never has more credit than one window beyond the slowest taker."""

    def __init__(self, keep_bytes: int, send: Callable[[Kind, bytes], int], sent: Callable[[], int]) -> None:
        """`send` returns how many bytes will have left when this frame has, and `sent` how many have."""
        self.record = Record(keep_bytes, on_progress=self.settle_all)
        self.followers: WeakSet[Follower] = WeakSet()
        self.answers: AnswerSink | None = None
        self.is_free = False
        """Whether nobody slows the program down any more: it is being killed."""
        self.last_output: float | None = None
        """When something arrived last, as `time.monotonic` counts."""
        self._send = send
        self._sent = sent
        self._received = dict.fromkeys(OUTPUTS, 0)
        self._granted = dict.fromkeys(OUTPUTS, 0)
        self._told = dict.fromkeys(OUTPUTS, 0)
        """Of what was granted, as much as has left this process for certain; `_leaving` is the rest."""
        self._leaving: deque[tuple[int, Kind, int]] = deque()

    @property
    def written(self) -> int:
        """Bytes of both streams that have arrived."""
        return self._received[Kind.OUT] + self._received[Kind.ERR]

    def take(self, kind: Kind, data: bytes) -> None:
        """Take one frame's payload; raise `FrameError` if an honest guest could not have sent it."""
        if not data:
            raise FrameError(f"an empty {kind.name} frame came")
        offset = self._received[kind]
        self._received[kind] += len(data)
        if self._received[kind] - self._told[kind] > WINDOW_BYTES:
            self._see_what_has_left()
            if self._received[kind] - self._told[kind] > WINDOW_BYTES:
                raise FrameError(f"{kind.name} overran its window")
        if kind is not Kind.ANSWER:
            self.last_output = time.monotonic()
            self.record.add(kind, data)
            if self.followers:
                for follower in list(self.followers):  # one may bring another one in
                    follower.feed(kind, offset, data)
                self.wake()
        elif self.answers is not None:
            self.answers.feed(data)
        else:
            raise FrameError("an ANSWER came from a program that is no server")

    def settle(self, kind: Kind) -> None:
        """Grant the guest credit for what everybody has taken of a stream."""
        floor = self._received[kind]
        if floor - self._granted[kind] < GRANT_BYTES:
            return
        if kind is Kind.ANSWER:
            floor = self.answers.taken if self.answers is not None and not self.is_free else floor
        elif self.record.streams[kind].is_behind:
            return
        elif not self.is_free:
            floor = min([floor, *(follower.floor(kind) for follower in self.followers)])
        if (count := floor - self._granted[kind]) >= GRANT_BYTES:
            self._granted[kind] = floor
            self._leaving.append((self._send(Kind.WINDOW_OUT, window(kind, count)), kind, floor))

    def _see_what_has_left(self) -> None:
        """Look which grants the guest can know of: one that reads nothing must not make more and more of them wait."""
        while self._leaving and self._leaving[0][0] <= self._sent():
            _, kind, floor = self._leaving.popleft()
            self._told[kind] = floor

    def settle_all(self) -> None:
        for kind in OUTPUTS:
            self.settle(kind)

    def wake(self) -> None:
        for follower in list(self.followers):
            follower.wake()

    def end(self) -> None:
        """Tell everybody who waits that no more will come."""
        self.wake()
        if self.answers is not None:
            self.answers.wake()
