"""One program in a guest: what was asked, what arrived, what may still be sent, and how it ended."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

import anyio
from pydantic import ValidationError

from sandbox import arguments
from sandbox.arguments import Data
from sandbox.certificate import Cause
from sandbox.errors import ConfigError, GuestLost, GuestResources, StateError, afresh
from sandbox.guest.deadlines import Deadlines
from sandbox.guest.ending import LOST, SIGNAL_MAX, End, refusal
from sandbox.guest.events import KINDS, Events, Output, StreamName
from sandbox.guest.inputs import Inputs
from sandbox.guest.intake import AnswerSink, Follower, Intake
from sandbox.guest.output import Record
from sandbox.guest.request import Request
from sandbox.guest.stages import ExecutionStages
from sandbox.guest.verdict import Ending, lost
from sandbox.handle import Handle
from sandbox.log import log
from sandbox.result import Outcome, Result
from sandbox.wire import (
    INPUTS,
    OUTPUTS,
    Frame,
    FrameError,
    Kind,
    decode_json,
    decode_pid,
    decode_window,
    size,
)

if TYPE_CHECKING:
    from sandbox.guest.client import GuestClient

KILL_SECONDS = 2.0
"""After a kill the guest has this long to report that the process tree is gone, unless its pool says otherwise; then
the VM goes instead. See `Deadlines.limit_dying`."""

RETIRE_SECONDS = 30.0
"""The same for a kill that is only to clear up."""


class Status(StrEnum):
    """Whether a program runs. One of these is always the truth; there is no "unknown"."""

    NEVER_STARTED = "never_started"
    """No such execution was ever sent to the guest: starting it is safe."""
    RUNNING = "running"
    FINISHED = "finished"
    """`wait` returns the result, or raises why the VM was lost. Only children that it left behind may still run."""


class Execution(Handle):
    """A program that was started in a VM. Nobody needs to wait for it: deadlines and output are kept by callbacks.

    Everything that happens to it happens synchronously, on frames, timers and calls, so no cancellation can come
    between; only waiting is asynchronous.
    """

    def __init__(self, client: GuestClient, number: int, request: Request) -> None:
        self.id = request.id
        self.number = number
        self.pid: int | None = None
        """Process id in the guest, once it has one."""
        self._client = client
        self._request = request
        self._intake = Intake(request.keep_bytes, self._send, lambda: client.sent_bytes)
        self._inputs = Inputs(self._send)
        self._input_over = False
        self._is_asked = False
        self._started = time.monotonic()
        self._started_at = datetime.now(UTC)
        self._ordered: Cause | None = None
        self._why = ""
        self._ending: Ending | None = None
        self._over = anyio.Event()
        self._deadlines = Deadlines(self.stop)
        self._mark = 0
        self._stages = None if request.is_server else ExecutionStages.if_wanted(client.clock_era)

    def __repr__(self) -> str:
        return f"<Execution {self.id} {self.status}>"

    # What callers see.

    @property
    def accelerator(self) -> str:
        """`kvm` or `tcg`, of the machine that runs it."""
        return self._client.accelerator

    @property
    def vm(self) -> str:
        """Name of the machine that it runs in."""
        return self._client.name

    @property
    def record(self) -> Record:
        """What it has written so far."""
        return self._intake.record

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
        if self._ending is None:
            return Status.RUNNING
        is_lost = isinstance(self._ending.end, GuestLost)
        return Status.NEVER_STARTED if is_lost and not self._ending.was_sent else Status.FINISHED

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, or None while it runs."""
        return self._ending.judge()[0] if self._ending is not None else None

    @property
    def seconds(self) -> float | None:
        """How long it ran, or None while it runs."""
        return self._ending.duration if self._ending is not None else None

    def account(self) -> dict[str, object]:
        """Return what an audit wants to know: who ran what kind of program and, after its end, how it ended."""
        told: dict[str, object] = {"op": self._request.op, "user": self._request.user, "pid": self.pid}
        return told | (self._ending.account(self._intake.written) if self._ending is not None else {})

    async def wait(self) -> Result:
        """Return the result when the program has ended; as often and by as many as like.

        Raises `GuestLost`, with what had arrived as its `partial`, if the VM or the channel went first; if it went
        because the guest did not obey a deadline, the result says so. Raises `GuestResources` if the guest had no room
        for another process, so that nothing ran. Cancelling the wait changes nothing.
        """
        self._client.check_home()
        await self._over.wait()
        assert self._ending is not None
        if isinstance(end := self._ending.end, End) and end.refused is not None and self._ordered is None:
            raise GuestResources(refusal(end.refused))
        result = await self._ending.report(self.record, self.vm, self.id, self._client.timings, self.accelerator)
        if self._stages is not None:
            self._stages.reported()
        if isinstance(self._ending.end, GuestLost) and result.outcome in LOST:
            error = afresh(self._ending.end)
            error.partial, error.certificate = result, result.certificate
            raise error
        return result

    async def wait_over(self) -> None:
        """Return when it has ended, however."""
        self._client.check_home()
        await self._over.wait()

    def events(self, *, stdout_offset: int = 0, stderr_offset: int = 0) -> Events:
        """Iterate over what it has written from these offsets on, what it writes, and its end."""
        self._client.check_home()
        offsets = {"stdout_offset": stdout_offset, "stderr_offset": stderr_offset}
        out, err = (arguments.count(name, offset) for name, offset in offsets.items())
        return Events(self, {Kind.OUT: out, Kind.ERR: err})

    async def read(self, stream: StreamName, offset: int = 0, max_bytes: int = 1024 * 1024) -> Output:
        """Return what is there of a stream from `offset` on; no bytes if that is the present end.

        The piece begins later than `offset` if the bytes before it were beyond what is kept.
        """
        self._client.check_home()
        name = arguments.stream("stream", stream)
        place, size = arguments.count("offset", offset), arguments.count("max_bytes", max_bytes)
        begin, data = await self.record.streams[KINDS[name]].read(place, size)
        return Output(name, begin, data)

    async def write(self, data: Data) -> None:
        """Pass bytes, or text as UTF-8, to standard input. Returns when the guest has room; drops them after the end.

        Raises `StateError` after `close_stdin`.
        """
        self._client.check_home()
        given = arguments.data("data", data)
        if self._input_over:
            raise StateError(f"standard input of {self.id} was closed before")
        await self.send_input(Kind.STDIN, given)

    async def close_stdin(self) -> None:
        """End standard input: the program reads an end of file after what was written. On a terminal, send Ctrl-D."""
        self._client.check_home()
        self._client.note_use()
        if not self._input_over:
            self._input_over = not self._request.pty
            await self._inputs.fed()
            self._send(Kind.STDIN_EOF)
        await self._client.drained()

    def send_signal(self, number: int, *, tree: bool = False) -> None:
        """Send a signal to the program's process group, or with `tree` to every process that came from it.

        After the program's end, `tree` reaches what it has left running. Raises `ConfigError` for a number that no
        signal has.
        """
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= SIGNAL_MAX:
            raise ConfigError(f"{number!r} is no signal; give a number from 1 to {SIGNAL_MAX}")
        arguments.flag("tree", tree)
        self._client.check_home()
        self._client.note_use()
        if tree or not self.has_ended:
            self._client.send_json(Kind.KILL, self.number, {"signal": int(number), "tree": tree})

    def kill(self) -> None:
        """Kill every process that came from it, whatever session it moved to. `wait` tells the end.

        After the program's end, what it has left running in the background is killed.
        """
        self._client.check_home()
        if self.has_ended:
            self._client.send_json(Kind.KILL, self.number, {"tree": True})
        self.stop(Cause.KILLED_BY_CALLER, "killed by the caller")

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal's new size."""
        self._client.check_home()
        self._client.note_use()
        tall, wide = arguments.count("rows", rows), arguments.count("columns", columns)
        self._send(Kind.RESIZE, size(min(max(tall, 1), 65535), min(max(wide, 1), 65535)))

    # What the sandbox's own parts use.

    def start(self) -> None:
        """Send the request and start the clocks. Synchronous: either it was sent or nothing happened."""
        message = self._request.message()
        if self._stages is not None:
            message["trace"] = True
        self._client.send_json(Kind.START, self.number, message)
        self._mark = self._client.queued_bytes
        if self._stages is not None:
            self._stages.sent()
        self._request = replace(self._request, fields={}, env={})  # up to 8 MiB, and not needed any more
        if self._request.timeout is not None:
            self._deadlines.limit(self._request.timeout)
        if self._request.idle_timeout is not None:
            started = self._started
            self._deadlines.limit_silence(self._request.idle_timeout, lambda: self._intake.last_output or started)

    def retire(self) -> None:
        """Have it killed although it did nothing wrong: a guest with much to do may take its time."""
        self.stop(Cause.KILLED_BY_CALLER, "it was not needed any more", patience=RETIRE_SECONDS)

    def stop(self, cause: Cause, why: str, *, patience: float | None = None) -> None:
        """Have the whole process tree killed, for this reason; if the guest does not obey, the VM goes."""
        if self.has_ended or self._ordered is not None:
            return
        self._ordered, self._why = cause, why
        self._send_json(Kind.KILL, {"tree": True})
        self._intake.is_free = True
        self._intake.settle_all()  # nobody slows a dying program down
        allowed = self._client.kill_patience if patience is None else patience
        self._deadlines.limit_dying(allowed, lambda: self._client.times_heard, lambda: self._give_up(allowed))

    async def send_input(self, kind: Kind, data: bytes) -> None:
        self._is_asked = kind is Kind.ASK
        self._client.note_use()
        await self._inputs.send(kind, data)
        await self._client.drained()

    def feed(self, data: bytes, *, is_all: bool = True) -> None:
        """Pass bytes to standard input as the guest has room for them, and end it then if they are all there is.

        Waits for nothing and needs no task: what has no room yet is sent when the guest grants it, and is dropped
        when the program ends.
        """
        self._input_over = is_all and not self._request.pty
        self._inputs.feed(Kind.STDIN, data, then=Kind.STDIN_EOF if is_all else None)

    def send_input_nowait(self, kind: Kind, data: bytes) -> bool:
        """Send a few bytes at once if the guest has room for them; return whether it had."""
        return self._inputs.send_nowait(kind, data)

    def follow(self, follower: Follower) -> None:
        self._intake.followers.add(follower)

    def unfollow(self, follower: Follower) -> None:
        self._intake.followers.discard(follower)
        self._intake.settle_all()

    def take_answers(self, sink: AnswerSink) -> None:
        self._intake.answers = sink

    def deliver(self, frame: Frame) -> None:
        """Take one frame; raise `FrameError` if an honest guest could not have sent it."""
        try:
            self._take(frame)
        except (FrameError, ValidationError):
            raise
        except Exception as error:  # noqa: BLE001 - a defect of ours: what follows in the channel would be lost
            log.error("frame_not_taken", vm=self.vm, execution=self.id, kind=frame.kind.name, error=repr(error))
            said = f"the host could not take {frame.kind.name} of execution {self.id}: {error!r}; its VM is destroyed"
            self._client.close(lost(Cause.HOST_DEFECT, said))

    def _take(self, frame: Frame) -> None:
        if self.has_ended:
            raise FrameError(f"{frame.kind.name} came after the end of execution {self.number}")
        if frame.kind in OUTPUTS:
            self._take_output(frame.kind, frame.payload)
        elif frame.kind is Kind.WINDOW_IN:
            stream, count = decode_window(frame.payload, INPUTS)
            self._inputs.grant(stream, count)
        elif frame.kind is Kind.STARTED:
            if self.pid is not None:
                raise FrameError(f"execution {self.number} started twice")
            self.pid = decode_pid(frame.payload)
            if self._stages is not None:
                self._stages.started()
            self._intake.wake()
        elif frame.kind is Kind.EXITED:
            end = End.model_validate(decode_json(frame.payload))
            if (end.code is None) == (end.signal is None):
                raise FrameError("an end has either an exit code or a signal")
            self._finish(end)
        else:
            raise FrameError(f"{frame.kind.name} does not belong to an execution")

    def lose(self, error: GuestLost) -> None:
        """The VM or the channel is gone: that is the end of this execution too."""
        if not self.has_ended:
            self._finish(error)

    def settle(self, kind: Kind) -> None:
        """Note that somebody has taken more of a stream; grant the guest credit for what everybody has taken."""
        self._client.note_use()
        self._intake.settle(kind)

    # Inside.

    def _take_output(self, kind: Kind, data: bytes) -> None:
        if self._stages is not None:
            self._stages.output()
        self._intake.take(kind, data)
        if kind is Kind.ANSWER:
            if self._is_asked:
                self._is_asked = False
                self._client.note_use()
        elif (limit := self._request.output_bytes) is not None and self._intake.written > limit:
            self.stop(Cause.OUTPUT_LIMIT, f"wrote more than {limit} bytes; the whole process tree was killed")
        self._intake.settle(kind)

    def _give_up(self, patience: float) -> None:
        said = f"the guest did not obey a kill within {patience:g} s; its VM is destroyed"
        self._client.close(lost(Cause.UNRESPONSIVE, said))

    def _finish(self, end: End | GuestLost) -> None:
        self._deadlines.cancel()
        now = time.monotonic()
        last = self._intake.last_output
        self._ending = Ending(
            end=end,
            ordered=self._ordered,
            why=self._why,
            started_at=self._started_at,
            ended_at=datetime.now(UTC),
            duration=now - self._started,
            last_output=None if last is None else now - last,
            was_sent=self._mark != 0 and self._client.sent_bytes >= self._mark,
        )
        if self._stages is not None:
            self._stages.ended(end.stamps if isinstance(end, End) else None)
        self._over.set()
        self._inputs.end()
        self._intake.end()
        self._client.on_ended(self)

    def _send(self, kind: Kind, payload: bytes = b"") -> int:
        """Send a frame; return how many bytes will have left when it has."""
        if not self.has_ended:
            self._client.send(kind, self.number, payload)
        return self._client.queued_bytes

    def _send_json(self, kind: Kind, message: dict[str, object]) -> None:
        if not self.has_ended:
            self._client.send_json(kind, self.number, message)


@asynccontextmanager
async def killing(execution: Execution) -> AsyncIterator[Execution]:
    """Have the program killed if it still runs when the context is left: its caller was cancelled, or failed."""
    try:
        yield execution
    finally:
        execution.stop(Cause.CANCELLED, "the call that ran it was cancelled; the whole process tree was killed")
