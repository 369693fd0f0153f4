"""One call of a persistent interpreter: what it wrote while it ran, and the result that is made of it."""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import anyio
from pydantic import BeforeValidator, FailFast, Field

from sandbox.certificate import Cause, DeathCertificate
from sandbox.errors import GuestLost
from sandbox.guest.beside import NOT_THEIRS
from sandbox.guest.events import NAMES, StreamName
from sandbox.guest.execution import Execution
from sandbox.guest.output import Record
from sandbox.guest.said import Said
from sandbox.result import CellError, CellResult, Outcome
from sandbox.wire import WINDOW_BYTES, Kind

OutputSink = Callable[[StreamName, bytes], Awaitable[None] | None]
_UNBOUNDED = 1 << 62
_TAIL_BYTES = 64 * 1024


def _few_fields(error: object) -> object:
    if isinstance(error, dict) and len(error) > len(CellError.__slots__):
        raise ValueError("an error has more fields than are known")
    return error


class Answer(Said):
    """What a context says about one cell."""

    number: int = Field(ge=0, lt=2**63)
    value: dict[str, Any] | None = None
    displayed: Annotated[list[dict[str, Any]], FailFast()] = Field(default_factory=list, max_length=20_000)
    error: Annotated[CellError | None, BeforeValidator(_few_fields)] = None
    status: int | None = Field(default=None, ge=0, le=255)


class Cell:
    """Collects what is written while one cell runs, and passes it on to a sink that may be slow."""

    def __init__(self, execution: Execution, number: int, keep: int, sink: OutputSink | None) -> None:
        self.number = number
        self.failure: BaseException | None = None
        """What the sink has raised."""
        self.is_free = False
        """Whether the sink no longer slows the code down, because that is to come to its end."""
        self._execution = execution
        self._record = Record(keep, memory=keep)
        self._sink = sink
        self._pieces: deque[tuple[Kind, int, bytes]] = deque()
        self._taken = {kind: execution.record.streams[kind].total for kind in NAMES}
        self._is_over = False
        self._news = anyio.Event()
        self._passed = anyio.Event()
        self._started = time.monotonic()
        self._started_at = datetime.now(UTC)
        execution.follow(self)

    def floor(self, kind: Kind) -> int:
        return _UNBOUNDED if self._sink is None or self.is_free else self._taken[kind]

    def feed(self, kind: Kind, offset: int, data: bytes) -> None:
        self._record.add(kind, data)
        end = offset + len(data)
        # Only a cell that is to end can be more than a window ahead of its sink, which then misses the rest.
        if self._sink is not None and self.failure is None and end - self._taken[kind] <= WINDOW_BYTES:
            self._pieces.append((kind, end, data))
            self._news.set()

    def wake(self) -> None: ...

    def free(self) -> None:
        """Let the code come to its end whatever its sink does."""
        if not self.is_free:
            self.is_free = True
            for kind in NAMES:
                self._execution.settle(kind)

    async def pass_on(self) -> None:
        """Call the sink with what comes, until `end_passing`; keep the error that it raises."""
        try:
            while not self._is_over or self._pieces:
                while self._pieces:
                    await self._pass_next()
                self._news = anyio.Event()
                if not self._is_over:
                    await self._news.wait()
        except NOT_THEIRS:
            raise
        except BaseException as error:  # noqa: BLE001 - raised from `Context.run`, whose caller it belongs to
            self.failure = error
            self._pieces.clear()
        finally:
            self._passed.set()

    async def end_passing(self, seconds: float) -> None:
        """Return when the sink has had everything. If it no longer slows the code down, wait for `seconds` only."""
        self._is_over = True
        self._news.set()
        with anyio.move_on_after(seconds if self.is_free else None):
            await self._passed.wait()

    async def _pass_next(self) -> None:
        kind, end, data = self._pieces.popleft()
        self._taken[kind] = end
        self._execution.settle(kind)
        if self._sink is not None and inspect.isawaitable(answer := self._sink(NAMES[kind], data)):
            await answer

    def result(self, answer: Answer, timeout: float | None) -> CellResult:
        """Return the result of a cell that was answered; `timeout` is given if it was interrupted for it."""
        status = answer.status if answer.status is not None else int(answer.error is not None)
        certificate = None
        if timeout is not None:
            said = f"timed out after {timeout:g} s and was interrupted; the context lives on"
            certificate = DeathCertificate(Cause.DEADLINE, said, retry_safe=False)
        elif status:
            said = f"raised {answer.error}" if answer.error else f"ended with {status}"
            certificate = DeathCertificate(Cause.EXIT_STATUS, said, retry_safe=False)
        return self._make(
            Outcome.EXITED if timeout is None else Outcome.TIMED_OUT,
            status if timeout is None else None,
            None,
            certificate,
            value=answer.value,
            displayed=tuple(answer.displayed),
            error=answer.error,
        )

    async def last_result(self) -> CellResult:
        """Return the result of a cell with which the interpreter has ended; raise `GuestLost` if the VM has."""
        try:
            end = await self._execution.wait()
        except GuestLost as error:
            outcome = error.partial.outcome if error.partial is not None else Outcome.VM_LOST
            error.partial = self._make(outcome, None, None, error.certificate, context_alive=False)
            raise
        return self._make(end.outcome, end.exit_code, end.signal, end.certificate, context_alive=False)

    def _make(
        self, outcome: Outcome, code: int | None, number: int | None, certificate: DeathCertificate | None, **more: Any
    ) -> CellResult:
        out, err = (self._record.streams[kind] for kind in NAMES)
        return CellResult(
            outcome=outcome,
            exit_code=code,
            signal=number,
            stdout=out.head_in_memory(),
            stderr=err.head_in_memory(),
            stdout_bytes=out.total,
            stderr_bytes=err.total,
            duration=time.monotonic() - self._started,
            vm=self._execution.vm,
            accelerator=self._execution.accelerator,
            id=f"{self._execution.id}/{self.number}",
            started_at=self._started_at,
            ended_at=datetime.now(UTC),
            certificate=certificate,
            stdout_tail=out.tail(_TAIL_BYTES),
            stderr_tail=err.tail(_TAIL_BYTES),
            runs=self._record.runs,
            **more,
        )
