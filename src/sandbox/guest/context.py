"""A persistent interpreter: what one call defines, the next one finds."""

from __future__ import annotations

import asyncio
import signal
from enum import Enum
from types import TracebackType

import anyio
from pydantic import ValidationError

from sandbox import arguments
from sandbox.certificate import Cause
from sandbox.errors import StateError
from sandbox.guest.beside import beside
from sandbox.guest.cell import Answer, Cell, OutputSink
from sandbox.guest.client import GuestClient
from sandbox.guest.execution import KILL_SECONDS, Execution
from sandbox.guest.language import answer_bound, cell_request, interruption, is_up_at_once
from sandbox.guest.request import CAPTURE_BYTES, Request
from sandbox.guest.said import fault
from sandbox.guest.server import Server, ServerGone
from sandbox.handle import Handle
from sandbox.result import CellResult
from sandbox.wire import GRANT_BYTES, WINDOW_BYTES, Kind

INTERRUPT_SECONDS = 1.0
"""An interrupted cell has so long to come to its end; then the whole context is killed."""
_SENT_AT_ONCE = WINDOW_BYTES - GRANT_BYTES


class Default(Enum):
    """That a call leaves something to the pool's configuration; None is no limit."""

    OF_THE_POOL = "the pool's default"


class Context(Handle):
    """One interpreter in the guest, used by one call at a time; further calls wait for their turn.

        async with vm.context() as context:
            await context.run("x = 6")
            result = await context.run("x * 7")  # result.value["text/plain"] == "42"

    It ends with its context manager, with `aclose`, when its code exits or kills it, or with the VM.
    """

    def __init__(
        self,
        client: GuestClient,
        language: str,
        request: Request,
        capture_bytes: int = CAPTURE_BYTES,
        timeout: object = None,
    ) -> None:
        self.language = language
        self._capture_bytes = capture_bytes
        self._timeout = timeout
        self._server = Server(client, request, answer_bound(language))
        self._turn = anyio.Lock(fast_acquire=True)
        self._number = 0
        self._busy_with = 0
        self._is_up = is_up_at_once(language)
        self._is_sending = False
        self._is_cut = False
        self._is_interrupted = False
        self._cell: Cell | None = None
        self._deadline: asyncio.TimerHandle | None = None

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
        timeout: float | Default | None = Default.OF_THE_POOL,
        on_output: OutputSink | None = None,
        capture_bytes: int | None = None,
    ) -> CellResult:
        """Run code and return what it wrote, the value of its last expression, what it displayed, and its error.

        `on_output` is called as in `Sandbox.run`: awaiting in it slows the code down. What it raises is raised here.

        After `timeout` seconds (by default what the pool says; None is no limit), or when cancelled, the code is
        interrupted as by Ctrl-C, so that the state survives; if it does not come to its end within a second, the whole
        context is killed. Raises `StateError` when the context has ended before, and `GuestLost` when the VM goes
        meanwhile.
        """
        limit = self._timeout if timeout is Default.OF_THE_POOL else timeout
        seconds = arguments.given(arguments.seconds, "timeout", limit)
        sink = arguments.given(arguments.call, "on_output", on_output)
        keep = arguments.given(arguments.count, "capture_bytes", capture_bytes)
        keep = self._capture_bytes if keep is None else keep
        request = cell_request(self.language, arguments.text("code", code))
        self._server.client.check_lease()
        async with self._turn:
            self._server.client.check_lease()
            await self._make_ready()
            if not self.is_alive:
                outcome = self.execution.outcome or "closed"
                raise StateError(f"the context {self.id} has ended ({outcome}); open another one")
            self._number += 1
            self._cell = cell = Cell(self.execution, self._number, keep, sink)
            self._busy_with, self._is_interrupted = self._number, False
            try:
                if sink is None:
                    return await self._run(cell, request(self._number), seconds)
                return await self._converse(cell, request(self._number), seconds)
            finally:
                self._cell = None
                self.execution.unfollow(cell)
                if self._busy_with:
                    self._interrupt_or_kill(Cause.CANCELLED, "the call that ran a cell was cancelled")

    def interrupt(self) -> None:
        """Interrupt the running cell as Ctrl-C does; nothing happens if none runs."""
        self._server.client.check_home()
        if not self._busy_with:
            return
        self._is_interrupted = True
        if not self._is_sending:
            # The signal is for a cell that runs, the word for one that has not begun: one of the two is in time.
            self.execution.send_input_nowait(Kind.ASK, interruption(self.language, self._busy_with))
            if self._is_up:
                self.execution.send_signal(signal.SIGINT)

    async def _converse(self, cell: Cell, request: bytes, timeout: float | None) -> CellResult:
        """Run a cell beside passing its output on."""

        async def pass_on() -> None:
            await cell.pass_on()
            if cell.failure is not None:
                self._interrupt_or_kill(Cause.CANCELLED, "the caller's output sink raised an error")

        async def run() -> CellResult:
            try:
                result = await self._run(cell, request, timeout)
            except Exception:
                await cell.end_passing(KILL_SECONDS)
                raise
            await cell.end_passing(KILL_SECONDS)
            if cell.failure is not None:
                raise cell.failure
            return result

        return await beside(pass_on, run)

    async def _run(self, cell: Cell, request: bytes, timeout: float | None) -> CellResult:
        answer = None
        try:
            with anyio.move_on_after(timeout):
                await self._ask(request)
                answer = await self._answer()
            if timed_out := answer is None:
                why = f"a cell timed out after {timeout:g} s and did not come to its end"
                self._interrupt_or_kill(Cause.DEADLINE, why)
                answer = await self._answer()
        except ServerGone:
            self._busy_with = 0
            result = await cell.last_result()
        else:
            result = cell.result(answer, timeout if timed_out else None)
        return result

    async def _ask(self, request: bytes) -> None:
        """Send a request; if only a part of it may have been sent, note that the interpreter is of no further use."""
        self._is_sending = True
        try:
            await self.execution.send_input(Kind.ASK, request)
        except BaseException:
            self._is_cut = len(request) > _SENT_AT_ONCE
            raise
        finally:
            self._is_sending = False
        if self._is_interrupted:
            self.interrupt()

    async def _answer(self) -> Answer:
        """Return the answer to the cell that is under way."""
        answer = await self._receive()
        if not self._is_up and answer.number == 0:
            self._is_up = True
            if self._is_interrupted:
                self.execution.send_signal(signal.SIGINT)
            answer = await self._receive()
        if answer.number != self._busy_with:
            raise self._server.nonsense(f"an answer to cell {answer.number} instead of {self._busy_with}")
        self._busy_with = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        return answer

    async def _receive(self) -> Answer:
        try:
            return Answer.model_validate(await self._server.receive_json())
        except ValidationError as error:
            raise self._server.nonsense(fault(error)) from None

    async def _make_ready(self) -> None:
        """Have standard input at its end, and skip the answer of a cell that was cancelled."""
        if self._number == 0:
            await self.execution.close_stdin()
        if self._busy_with:
            try:
                await self._answer()
            except ServerGone:
                self._busy_with = 0

    def _interrupt_or_kill(self, cause: Cause, why: str) -> None:
        if not self._busy_with:
            return
        if self._cell is not None:
            self._cell.free()
        if self._is_cut:
            self.execution.stop(cause, f"{why}; its code was still being sent")
            return
        self.interrupt()
        if self._deadline is None and self.is_alive:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(INTERRUPT_SECONDS, self.execution.stop, cause, why)

    async def aclose(self) -> None:
        """End the interpreter and every program that it started; return when they have. May be called twice."""
        self._server.client.check_home()
        self._server.close()
        await self.execution.wait_over()

    async def __aenter__(self) -> Context:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
