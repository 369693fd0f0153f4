"""One call of a persistent interpreter: what it wrote while it ran, and the result that is made of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sandbox.certificate import Cause, DeathCertificate
from sandbox.errors import GuestLost
from sandbox.guest.events import NAMES, StreamName
from sandbox.guest.execution import Execution
from sandbox.guest.output import Record
from sandbox.result import CellError, CellResult, Outcome
from sandbox.wire import Kind

_UNBOUNDED = 1 << 62
_TAIL_BYTES = 64 * 1024


class Answer(BaseModel):
    """What a context says about one cell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    value: dict[str, Any] | None = None
    displayed: list[dict[str, Any]] = Field(default_factory=list)
    error: CellError | None = None
    status: int | None = Field(default=None, ge=0, le=255)


class Cell:
    """Collects what is written while one cell runs. `on_failure` is called when its output sink raises."""

    def __init__(
        self,
        execution: Execution,
        number: int,
        keep: int,
        on_output: Callable[[StreamName, bytes], None] | None,
        on_failure: Callable[[], None],
    ) -> None:
        self.number = number
        self.failure: Exception | None = None
        self._execution = execution
        self._record = Record(keep, memory=keep)
        self._on_output = on_output
        self._on_failure = on_failure
        self._started = time.monotonic()
        self._started_at = datetime.now(UTC)
        execution.follow(self)

    def floor(self, _kind: Kind) -> int:
        return _UNBOUNDED

    def feed(self, kind: Kind, _offset: int, data: bytes) -> None:
        self._record.add(kind, data)
        if self._on_output is not None and self.failure is None:
            try:
                self._on_output(NAMES[kind], data)
            except Exception as error:  # noqa: BLE001 - raised from `Context.run`, whose caller it belongs to
                self.failure = error
                self._on_failure()

    def wake(self) -> None: ...

    def result(self, answer: Answer, timeout: float | None) -> CellResult:
        """Return the result of a cell that was answered; `timeout` is given if it was interrupted for it."""
        status = answer.status if answer.status is not None else int(answer.error is not None)
        certificate = None
        if timeout is not None:
            said = f"timed out after {timeout:g} s and was interrupted; the context lives on"
            certificate = DeathCertificate(Cause.DEADLINE, said, retry_safe=False)
        elif status:
            said = f"raised {answer.error.name}: {answer.error.text}" if answer.error else f"ended with {status}"
            certificate = DeathCertificate(Cause.EXIT_STATUS, said[:1000], retry_safe=False)
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
