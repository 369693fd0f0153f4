"""A persistent interpreter: what one call defines, the next one finds."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import anyio
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sandbox.certificate import Cause, DeathCertificate
from sandbox.errors import ConfigError, GuestLost, StateError
from sandbox.guest.client import GuestClient
from sandbox.guest.events import NAMES, StreamName
from sandbox.guest.execution import Execution
from sandbox.guest.output import Record
from sandbox.guest.request import CAPTURE_BYTES, Request
from sandbox.guest.server import Server, ServerGone
from sandbox.result import CellError, CellResult, Outcome
from sandbox.wire import Kind

INTERRUPT_SECONDS = 1.0
"""An interrupted cell has so long to come to its end; then the whole context is killed."""
_UNBOUNDED = 1 << 62
_BASH = r"""
trap : INT
while IFS= read -r -d '' -u 3 __number && IFS= read -r -d '' -u 3 __code; do
    eval "$__code" 3<&- 4>&-
    printf -v __code '{"number":%d,"status":%d}' "$__number" "$?"
    printf -v __number '%03o' "${#__code}"
    printf '\0\0\0\'"$__number"'\1%s' "$__code" >&4
done
"""
"""Takes a number and code, each ended by NUL, and answers with a message: three bytes of its length are always 0."""


class _Answer(BaseModel):
    """What a context says about one cell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    value: dict[str, Any] | None = None
    displayed: list[dict[str, Any]] = Field(default_factory=list)
    error: CellError | None = None
    status: int | None = Field(default=None, ge=0, le=255)


class Context:
    """One interpreter in the guest, used by one call at a time; further calls wait for their turn.

        async with vm.context() as context:
            await context.run("x = 6")
            result = await context.run("x * 7")  # result.value["text/plain"] == "42"

    It ends with its context manager, with `aclose`, when its code exits or kills it, or with the VM.
    """

    def __init__(self, client: GuestClient, language: str, request: Request) -> None:
        self.language = language
        self._server = Server(client, request)
        self._turn = anyio.Lock()
        self._number = 0
        self._busy_with = 0
        self._interrupt: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Context {self.id} {self.language} {'alive' if self.is_alive else 'ended'}>"

    @property
    def id(self) -> str:
        """The id of the interpreter's execution."""
        return self.execution.id

    @property
    def execution(self) -> Execution:
        """The interpreter itself: signals, status, and how it ended."""
        return self._server.execution

    @property
    def is_alive(self) -> bool:
        return self._server.is_alive

    async def run(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_output: Callable[[StreamName, bytes], None] | None = None,
        capture_bytes: int = CAPTURE_BYTES,
    ) -> CellResult:
        """Run code and return what it wrote, the value of its last expression, what it displayed, and its error.

        After `timeout` seconds, or when cancelled, the code is interrupted as by Ctrl-C, so that the state survives;
        if it does not come to its end within a second, the whole context is killed. Raises `StateError` when the
        context has ended before, and `GuestLost` when the VM goes meanwhile.
        """
        if timeout is not None and timeout <= 0:
            raise ConfigError(f"timeout is {timeout:g} s; give a positive number of seconds or None")
        async with self._turn:
            await self._skip_late_answer()
            if not self.is_alive:
                raise StateError(f"the context {self.id} has ended ({self.execution.outcome}); open another one")
            self._number += 1
            cell = _Cell(self.execution, self._number, capture_bytes, on_output)
            self._busy_with = self._number
            try:
                return await self._run(cell, code, timeout)
            finally:
                self.execution.unfollow(cell)
                if self._busy_with:
                    self._interrupt_or_kill("the call that ran it was cancelled")

    async def _run(self, cell: _Cell, code: str, timeout: float | None) -> CellResult:
        try:
            await self._ask(cell.number, code)
            answer = None
            with anyio.move_on_after(timeout) as deadline:
                answer = await self._answer()
            timed_out = deadline.cancelled_caught
            if timed_out:
                self._interrupt_or_kill(f"a cell timed out after {timeout:g} s and did not come to its end")
                answer = await self._answer()
        except ServerGone:
            return await self._ended(cell)
        if cell.failure is not None:
            raise cell.failure
        return cell.result(answer, timeout if timed_out else None)

    async def _ask(self, number: int, code: str) -> None:
        if self.language == "bash":
            if "\0" in code:
                raise ConfigError("the code holds a NUL byte, which bash cannot take")
            data = f"{number}\0{code}\0".encode("utf-8", "surrogateescape")
            await self.execution.send_input(Kind.ASK, data)
        else:
            await self._server.ask({"number": number, "code": code})

    async def _answer(self) -> _Answer:
        """Return the answer to the cell that is under way."""
        try:
            answer = _Answer.model_validate(await self._server.receive_json())
        except ValidationError as error:
            raise self._server.nonsense(str(error).splitlines()[0]) from error
        self._busy_with = 0
        if self._interrupt is not None:
            self._interrupt.cancel()
            self._interrupt = None
        return answer

    async def _skip_late_answer(self) -> None:
        if self._busy_with:
            try:
                await self._answer()
            except ServerGone:
                self._busy_with = 0

    def _interrupt_or_kill(self, why: str) -> None:
        self.interrupt()
        if self._interrupt is None and self.is_alive:
            loop = asyncio.get_running_loop()
            self._interrupt = loop.call_later(INTERRUPT_SECONDS, self.execution.stop, Cause.DEADLINE, why)

    def interrupt(self) -> None:
        """Interrupt the running cell as Ctrl-C does; nothing happens if none runs."""
        self.execution.send_signal(signal.SIGINT)

    async def _ended(self, cell: _Cell) -> CellResult:
        """The interpreter is gone: raise if the VM is, else say how it ended."""
        self._busy_with = 0
        try:
            result = await self.execution.wait()
        except GuestLost as error:
            outcome = error.partial.outcome if error.partial is not None else Outcome.VM_LOST
            error.partial = cell.last_result(outcome, None, None, error.certificate)
            raise
        return cell.last_result(result.outcome, result.exit_code, result.signal, result.certificate)

    async def aclose(self) -> None:
        """End the interpreter and every program that it started. May be called twice."""
        self._server.close()

    async def __aenter__(self) -> Context:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Cell:
    """Collects what is written while one cell runs."""

    def __init__(
        self, execution: Execution, number: int, keep: int, on_output: Callable[[StreamName, bytes], None] | None
    ) -> None:
        self.number = number
        self.failure: Exception | None = None
        self._execution = execution
        self._record = Record(keep, memory=keep)
        self._on_output = on_output
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
                self._execution.send_signal(signal.SIGINT)

    def wake(self) -> None: ...

    def result(self, answer: _Answer | None, timeout: float | None) -> CellResult:
        assert answer is not None
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

    def last_result(
        self, outcome: Outcome, code: int | None, number: int | None, certificate: DeathCertificate | None
    ) -> CellResult:
        return self._make(outcome, code, number, certificate, context_alive=False)

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
            id=f"{self._execution.id}/{self.number}",
            started_at=self._started_at,
            ended_at=datetime.now(UTC),
            certificate=certificate,
            runs=self._record.runs,
            **more,
        )


def context_request(language: str, fields: Mapping[str, Any]) -> Request:
    """Return the request that starts an interpreter."""
    if language == "python":
        return Request("interpreter", {}, is_server=True, keep_bytes=0, **fields)
    if language == "bash":
        argv = {"argv": ["bash", "--norc", "-c", _BASH]}
        return Request("argv", argv, is_server=True, keep_bytes=0, **fields)
    raise ConfigError(f"there is no persistent context for {language!r}; there are python and bash")
