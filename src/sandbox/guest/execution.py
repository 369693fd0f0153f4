"""One program in a guest: what was asked, what arrived, what may still be sent, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

import anyio

from sandbox.certificate import Cause, DeathCertificate
from sandbox.errors import GuestLost, ProtocolError, StateError, afresh
from sandbox.guest.ending import LOST, End, certify, outcome_of_lost
from sandbox.guest.events import KINDS, NAMES, Events, Output, StreamName
from sandbox.guest.output import Record
from sandbox.guest.request import Request
from sandbox.result import Outcome, Result
from sandbox.wire import (
    CHUNK_BYTES,
    GRANT_BYTES,
    INPUTS,
    OUTPUTS,
    WINDOW_BYTES,
    Frame,
    FrameError,
    Kind,
    decode_json,
    decode_pid,
    decode_window,
    size,
    window,
)

if TYPE_CHECKING:
    from sandbox.guest.client import GuestClient

KILL_SECONDS = 2.0
"""After a kill the guest has so long to report that the process tree is gone; then the VM goes instead."""
_TAIL_BYTES = 64 * 1024


class Status(StrEnum):
    """Whether a program runs. One of these is always the truth; there is no "unknown"."""

    NEVER_STARTED = "never_started"
    """No such execution was ever sent to the guest: starting it is safe."""
    RUNNING = "running"
    FINISHED = "finished"
    """`wait` returns the result, or raises why the VM was lost; nothing of it runs any more."""


class Follower(Protocol):
    """Somebody who takes output as it comes."""

    def floor(self, kind: Kind) -> int: ...
    def feed(self, kind: Kind, offset: int, data: bytes) -> None: ...
    def wake(self) -> None: ...


class Execution:
    """A program that was started in a VM. Nobody needs to wait for it: deadlines and output are kept by callbacks.

    Everything that happens to it happens synchronously, on frames, timers and calls, so no cancellation can come
    between; only waiting is asynchronous.
    """

    def __init__(self, client: GuestClient, number: int, request: Request) -> None:
        self.id = request.id
        self.number = number
        self.pid: int | None = None
        """Process id in the guest, once it has one."""
        self.record = Record(request.keep_bytes, on_progress=self._settle_all)
        self._client = client
        self._request = request
        self._followers: WeakSet[Follower] = WeakSet()
        self._answers: AnswerSink | None = None
        self._received = dict.fromkeys(OUTPUTS, 0)
        self._granted = dict.fromkeys(OUTPUTS, 0)
        self._credit = dict.fromkeys(INPUTS, WINDOW_BYTES)
        self._has_credit = anyio.Event()
        self._input_over = False
        self._is_asked = False
        self._started = time.monotonic()
        self._started_at = datetime.now(UTC)
        self._ended_at: datetime | None = None
        self._duration = 0.0
        self._last_output: float | None = None
        self._ordered: Cause | None = None
        self._why = ""
        self._end: End | None = None
        self._lost: GuestLost | None = None
        self._over = anyio.Event()
        self._timers: list[asyncio.TimerHandle] = []
        self._mark = 0

    def __repr__(self) -> str:
        return f"<Execution {self.id} {self.status}>"

    # What callers see.

    @property
    def vm(self) -> str:
        """Name of the machine that it runs in."""
        return self._client.name

    @property
    def is_busy(self) -> bool:
        """Whether it runs for somebody: a server that waits to be asked does not."""
        return not self._request.is_server or self._is_asked

    @property
    def was_stopped(self) -> bool:
        """Whether the host ordered its end: a deadline, a limit, a cancelled call."""
        return self._ordered is not None

    @property
    def has_ended(self) -> bool:
        return self._over.is_set()

    @property
    def status(self) -> Status:
        """Whether it runs. After a loss of the VM, whether it can have run at all."""
        if not self.has_ended:
            return Status.RUNNING
        return Status.NEVER_STARTED if self._lost is not None and not self._was_sent else Status.FINISHED

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, or None while it runs."""
        return self._verdict()[0] if self.has_ended else None

    async def wait(self) -> Result:
        """Return the result when the program has ended; as often and by as many as like.

        Raises `GuestLost`, with what had arrived as its `partial`, if the VM or the channel went first; if it went
        because the guest did not obey a deadline, the result says so. Cancelling the wait changes nothing.
        """
        await self._over.wait()
        result = await self._make_result()
        if self._lost is not None and result.outcome in LOST:
            error = afresh(self._lost)
            error.partial, error.certificate = result, result.certificate
            raise error
        return result

    async def wait_over(self) -> None:
        """Return when it has ended, however."""
        await self._over.wait()

    def events(self, *, stdout_offset: int = 0, stderr_offset: int = 0) -> Events:
        """Iterate over what it has written from these offsets on, what it writes, and its end."""
        return Events(self, {Kind.OUT: stdout_offset, Kind.ERR: stderr_offset})

    async def read(self, stream: StreamName, offset: int = 0, max_bytes: int = 1024 * 1024) -> Output:
        """Return what is there of a stream from `offset` on; no bytes if that is the present end.

        The piece begins later than `offset` if the bytes before it were beyond what is kept.
        """
        begin, data = await self.record.streams[KINDS[stream]].read(offset, max_bytes)
        return Output(stream, begin, data)

    async def write(self, data: bytes) -> None:
        """Pass bytes to standard input. Returns when the guest has room for them; drops them after the end.

        Raises `StateError` after `close_stdin`.
        """
        if self._input_over:
            raise StateError(f"standard input of {self.id} was closed before")
        await self.send_input(Kind.STDIN, data)

    async def close_stdin(self) -> None:
        """End standard input: the program reads an end of file after what was written. On a terminal, send Ctrl-D."""
        if not self._input_over:
            self._input_over = not self._request.pty
            self._send(Kind.STDIN_EOF)
        await self._client.drained()

    def send_signal(self, number: int, *, tree: bool = False) -> None:
        """Send a signal to the program's process group, or to every process that came from it."""
        self._send_json(Kind.KILL, {"signal": int(number), "tree": tree})

    def kill(self) -> None:
        """Kill every process that came from it, whatever session it moved to. `wait` tells the end."""
        self.stop(Cause.KILLED_BY_CALLER, "killed by the caller")

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal's new size."""
        self._send(Kind.RESIZE, size(min(max(rows, 1), 65535), min(max(columns, 1), 65535)))

    # What the sandbox's own parts use.

    def start(self) -> None:
        """Send the request and start the clocks. Synchronous: either it was sent or nothing happened."""
        self._client.send_json(Kind.START, self.number, self._request.message())
        self._mark = self._client.queued_bytes
        self._request = replace(self._request, fields={}, env={})  # up to 8 MiB, and not needed any more
        loop = asyncio.get_running_loop()
        if self._request.timeout is not None:
            why = f"timed out after {self._request.timeout:g} s; the whole process tree was killed"
            self._timers.append(loop.call_later(self._request.timeout, self.stop, Cause.DEADLINE, why))
        if self._request.idle_timeout is not None:
            self._timers.append(loop.call_later(self._request.idle_timeout, self._check_idle))

    def stop(self, cause: Cause, why: str) -> None:
        """Have the whole process tree killed, for this reason; if the guest does not obey, the VM goes."""
        if self.has_ended or self._ordered is not None:
            return
        self._ordered, self._why = cause, why
        self._send_json(Kind.KILL, {"tree": True})
        self._settle_all()  # nobody slows a dying program down
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(KILL_SECONDS, self._give_up))

    async def send_input(self, kind: Kind, data: bytes) -> None:
        self._is_asked = kind is Kind.ASK
        view = memoryview(data)
        while view and not self.has_ended:
            if not self._credit[kind]:
                if self._has_credit.is_set():  # else others wait for the same event
                    self._has_credit = anyio.Event()
                await self._has_credit.wait()
                continue
            piece = view[: min(CHUNK_BYTES, self._credit[kind])]
            self._credit[kind] -= len(piece)
            self._send(kind, bytes(piece))
            view = view[len(piece) :]
        await self._client.drained()

    def send_input_nowait(self, kind: Kind, data: bytes) -> bool:
        """Send a few bytes at once if the guest has room for them; return whether it had."""
        if self.has_ended or self._credit[kind] < len(data):
            return False
        self._credit[kind] -= len(data)
        self._send(kind, data)
        return True

    def follow(self, follower: Follower) -> None:
        self._followers.add(follower)

    def unfollow(self, follower: Follower) -> None:
        self._followers.discard(follower)
        self._settle_all()

    def take_answers(self, sink: AnswerSink) -> None:
        self._answers = sink

    def deliver(self, frame: Frame) -> None:
        """Take one frame; raise `FrameError` if an honest guest could not have sent it."""
        if self._end is not None:
            raise FrameError(f"{frame.kind.name} came after the end of execution {self.number}")
        if frame.kind in OUTPUTS:
            self._take_output(frame.kind, frame.payload)
        elif frame.kind is Kind.WINDOW_IN:
            stream, count = decode_window(frame.payload, INPUTS)
            self._credit[stream] += count
            if self._credit[stream] > WINDOW_BYTES:
                raise FrameError(f"execution {self.number} granted more input than its window")
            self._has_credit.set()
        elif frame.kind is Kind.STARTED:
            if self.pid is not None:
                raise FrameError(f"execution {self.number} started twice")
            self.pid = decode_pid(frame.payload)
            self._wake()
        elif frame.kind is Kind.EXITED:
            end = End.model_validate(decode_json(frame.payload))
            if (end.code is None) == (end.signal is None):
                raise FrameError("an end has either an exit code or a signal")
            self._end = end
            self._finish()
        else:
            raise FrameError(f"{frame.kind.name} does not belong to an execution")

    def lose(self, error: GuestLost) -> None:
        """The VM or the channel is gone: that is the end of this execution too."""
        if not self.has_ended:
            self._lost = error
            self._finish()

    def settle(self, kind: Kind) -> None:
        """Grant the guest credit for what everybody has taken of a stream."""
        if self.has_ended:
            return
        floor = self._received[kind]
        if kind is Kind.ANSWER:
            floor = self._answers.taken if self._answers is not None else floor
        elif self.record.streams[kind].is_behind:
            return
        elif self._ordered is None:
            floor = min([floor, *(follower.floor(kind) for follower in self._followers)])
        if (count := floor - self._granted[kind]) >= GRANT_BYTES:
            self._granted[kind] = floor
            self._send(Kind.WINDOW_OUT, window(kind, count))

    # Inside.

    @property
    def _was_sent(self) -> bool:
        return self._mark != 0 and self._client.sent_bytes >= self._mark

    def _take_output(self, kind: Kind, data: bytes) -> None:
        if not data:
            raise FrameError(f"an empty {kind.name} frame came for execution {self.number}")
        offset = self._received[kind]
        self._received[kind] += len(data)
        if self._received[kind] - self._granted[kind] > WINDOW_BYTES:
            raise FrameError(f"{kind.name} of execution {self.number} overran its window")
        if kind is Kind.ANSWER:
            if self._answers is None:
                raise FrameError(f"execution {self.number} answered, but is no server")
            self._is_asked = False
            self._answers.feed(data)
        else:
            self._last_output = time.monotonic()
            self.record.add(kind, data)
            for follower in list(self._followers):  # one may bring another one in
                follower.feed(kind, offset, data)
            self._wake()
            limit = self._request.output_bytes
            if limit is not None and self._received[Kind.OUT] + self._received[Kind.ERR] > limit:
                self.stop(Cause.OUTPUT_LIMIT, f"wrote more than {limit} bytes; the whole process tree was killed")
        self.settle(kind)

    def _check_idle(self) -> None:
        allowed = self._request.idle_timeout
        assert allowed is not None
        left = (self._last_output or self._started) + allowed - time.monotonic()
        if left > 0:
            self._timers.append(asyncio.get_running_loop().call_later(left, self._check_idle))
            return
        self.stop(Cause.IDLE, f"wrote nothing for {allowed:g} s; the whole process tree was killed")

    def _give_up(self) -> None:
        said = f"the guest did not obey a kill within {KILL_SECONDS:g} s; its VM is destroyed"
        self._client.close(lost(Cause.UNRESPONSIVE, said))

    def _finish(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._duration = time.monotonic() - self._started
        self._ended_at = datetime.now(UTC)
        self._over.set()
        self._has_credit.set()
        self._wake()
        if self._answers is not None:
            self._answers.wake()
        self._client.on_ended(self)

    def _wake(self) -> None:
        for follower in list(self._followers):
            follower.wake()

    def _settle_all(self) -> None:
        for kind in OUTPUTS:
            self.settle(kind)

    def _send(self, kind: Kind, payload: bytes = b"") -> None:
        if not self.has_ended:
            self._client.send(kind, self.number, payload)

    def _send_json(self, kind: Kind, message: dict[str, object]) -> None:
        if not self.has_ended:
            self._client.send_json(kind, self.number, message)

    async def _make_result(self) -> Result:
        out, err = (self.record.streams[kind] for kind in NAMES)
        end = self._end
        outcome, certificate = self._verdict()
        was_killed = self._ordered is not None and outcome is not Outcome.EXITED
        return Result(
            outcome=outcome,
            exit_code=end.code if end is not None and not was_killed else None,
            signal=end.signal if end is not None else None,
            stdout=await out.head(),
            stderr=await err.head(),
            stdout_bytes=out.total,
            stderr_bytes=err.total,
            duration=self._duration,
            cpu_seconds=end.cpu_s if end is not None else None,
            peak_memory_bytes=end.peak_memory_bytes if end is not None else None,
            vm=self._client.name,
            id=self.id,
            started_at=self._started_at,
            ended_at=self._ended_at,
            certificate=certificate,
            stdout_tail=out.tail(_TAIL_BYTES),
            stderr_tail=err.tail(_TAIL_BYTES),
            runs=self.record.runs,
            timings={**self._client.timings, "run": self._duration},
        )

    def _verdict(self) -> tuple[Outcome, DeathCertificate | None]:
        last = None if self._last_output is None else max(0.0, self._started + self._duration - self._last_output)
        if self._lost is None:
            assert self._end is not None
            return certify(self._end, self._ordered, self._why, self._duration, last)
        cause, summary = _cause_of(self._lost), str(self._lost)
        evidence = dict(self._lost.certificate.evidence) if self._lost.certificate is not None else {}
        if self._ordered is not None and cause is Cause.UNRESPONSIVE:  # the deadline is why the VM had to go
            evidence["vm"] = summary
            cause, summary = self._ordered, f"{self._why}; {summary}"
        return outcome_of_lost(cause), DeathCertificate(cause, summary, not self._was_sent, last, evidence)


class AnswerSink(Protocol):
    """Who reads a server's control stream."""

    taken: int

    def feed(self, data: bytes) -> None: ...
    def wake(self) -> None: ...


def lost(cause: Cause, said: str, **evidence: object) -> GuestLost:
    """Return the error for a conversation that ended, with its certificate."""
    kind = ProtocolError if cause is Cause.PROTOCOL else GuestLost
    error = kind(said)
    error.certificate = DeathCertificate(cause, said, retry_safe=False, evidence=evidence)
    return error


def _cause_of(error: GuestLost) -> Cause:
    return error.certificate.cause if error.certificate is not None else Cause.CHANNEL


@asynccontextmanager
async def killing(execution: Execution) -> AsyncIterator[Execution]:
    """Have the program killed if it still runs when the context is left: its caller was cancelled, or failed."""
    try:
        yield execution
    finally:
        execution.stop(Cause.CANCELLED, "the call that ran it was cancelled; the whole process tree was killed")
