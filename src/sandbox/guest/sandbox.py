"""What can be done inside a leased VM: run programs, follow them, keep interpreters, handle files."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypedDict, Unpack

import anyio

from sandbox.certificate import Cause
from sandbox.config import Limits
from sandbox.errors import ConfigError, StateError
from sandbox.guest import transfer
from sandbox.guest.beside import beside
from sandbox.guest.cell import OutputSink
from sandbox.guest.client import GuestClient
from sandbox.guest.context import Context
from sandbox.guest.events import Events, Output
from sandbox.guest.execution import KILL_SECONDS, Execution, Status, killing
from sandbox.guest.files import READ_BYTES, Files
from sandbox.guest.language import start_request
from sandbox.guest.request import CAPTURE_BYTES, Request, command, script
from sandbox.guest.tree import TreeReport
from sandbox.result import Result

Stdin = bytes | AsyncIterable[bytes]


class ProgramOptions(TypedDict, total=False):
    """How a program is run; every key may be left out."""

    env: Mapping[str, str]
    """Variables beside the guest's own."""
    cwd: str | None
    """Directory; `/workspace` by default."""
    user: str | None
    """An unprivileged one by default; `root` is there for who asks."""
    limits: Limits | None
    timeout: float | None
    """Seconds until the whole process tree is killed, by the host's clock."""
    idle_timeout: float | None
    """Seconds without output until the same."""
    capture_bytes: int
    """So much of each stream's beginning is kept for the result, in memory and then in a file; all of it is counted."""
    id: str
    """A name of the caller's, unique in this VM, for `attach` and `status`; by default one is made."""


class RunOptions(ProgramOptions, total=False):
    """How a program is run to its end."""

    stdin: Stdin
    """Bytes, or an asynchronous iterable of them; then standard input ends. Nothing by default."""
    on_output: OutputSink | None
    """Called with (`"stdout"` or `"stderr"`, bytes) as the program writes; awaiting in it slows the program down."""
    pty: tuple[int, int] | None
    """Rows and columns of a terminal to run in, instead of pipes."""


class Sandbox:
    """The inside of one leased VM. Any number of programs, interpreters and file operations at once.

    Errors of the transport are exceptions (`GuestLost`); whatever a program does is data in its `Result`.
    """

    def __init__(self, client: GuestClient, languages: Sequence[str] = ("python", "bash")) -> None:
        self._client = client
        self.languages = tuple(languages)
        """The languages that `run` takes, as the image declares them."""
        self._files: dict[str | None, Files] = {}

    async def run(
        self,
        code: str,
        *,
        language: str = "python",
        args: Sequence[str] = (),
        name: str = "",
        **options: Unpack[RunOptions],
    ) -> Result:
        """Run code as a script and return how it ended; see `RunOptions`.

        Python runs in a fork of the guest's warm interpreter, other languages in an interpreter of their own. When
        the call is cancelled, the whole process tree is killed. Raises `GuestLost` when the VM dies meanwhile.
        """
        if language not in self.languages:
            known = ", ".join(self.languages)
            raise ConfigError(f"the image has no language {language!r}; it has {known}")
        return await self._run(*script(language, code, args, name), options)

    async def exec(self, argv: Sequence[str] | str, **options: Unpack[RunOptions]) -> Result:
        """Run a command and return how it ended: an argument vector, or a string for `bash -c`.

        A command that does not exist exits with 127, one that cannot be executed with 126. The rest is as in `run`.
        """
        return await self._run("argv", command(argv), options)

    async def spawn(
        self,
        argv: Sequence[str] | str,
        *,
        stdin: bytes | None = b"",
        pty: tuple[int, int] | None = None,
        **options: Unpack[ProgramOptions],
    ) -> Execution:
        """Start a command in the background and return at once with its `Execution`: wait, follow, write, signal.

        `stdin` is passed on as the program takes it, however much there is; then standard input ends. With
        `stdin=None` it stays open for `Execution.write`; on a terminal it always does. The program runs until it
        ends, its time-out passes, or the VM is destroyed; nobody needs to wait for it. If the call itself is
        cancelled, the program is killed.
        """
        execution = self._client.start(_request("argv", command(argv), options, pty=pty))
        if stdin is not None:
            execution.feed(stdin, is_all=pty is None)
        try:
            await self._client.drained()
        except BaseException:  # its caller will never hear of it
            execution.stop(Cause.CANCELLED, "the call that started it was cancelled; the whole process tree was killed")
            raise
        return execution

    def attach(self, ident: str) -> Execution:
        """Return the execution with this id, whether it runs or has ended: follow it from any offset, or wait.

        Raises `StateError` when there never was one, or when its result is not kept any more.
        """
        execution = self._client.executions.find(ident)
        if execution is None:
            raise StateError(f"no execution {ident!r} was ever started in this VM")
        return execution

    def status(self, ident: str) -> Status:
        """Return whether the execution with this id was never started, runs, or has finished. Never unknown."""
        if not self._client.executions.was_used(ident):
            return Status.NEVER_STARTED
        try:
            return self.attach(ident).status
        except StateError:
            return Status.FINISHED

    @asynccontextmanager
    async def context(self, language: str = "python", **options: Unpack[ProgramOptions]) -> AsyncIterator[Context]:
        """Open a persistent interpreter for the length of the context; see `Context`."""
        context = self.open_context(language, **options)
        try:
            yield context
        finally:
            await context.aclose()

    def open_context(self, language: str = "python", **options: Unpack[ProgramOptions]) -> Context:
        """Open a persistent interpreter that lives until `aclose`, or as long as the VM.

        Of the options, `timeout` and `idle_timeout` are for the interpreter's whole life; `capture_bytes` is for each
        of its cells, unless `Context.run` is given another number.
        """
        if language not in self.languages:
            raise ConfigError(f"the image has no language {language!r}; it has {', '.join(self.languages)}")
        fields = {key: value for key, value in options.items() if key != "capture_bytes"}
        request = _checked(lambda: start_request(language, fields))
        return Context(self._client, language, request, options.get("capture_bytes", CAPTURE_BYTES))

    @property
    def files(self) -> Files:
        """Files as the unprivileged user sees them."""
        return self.files_of(None)

    def files_of(self, user: str | None) -> Files:
        """Return files as this user sees them; None is the unprivileged one."""
        if user not in self._files:
            self._files[user] = Files(self._client, user)
        return self._files[user]

    async def read_file(self, path: str, *, user: str | None = None, limit: int = READ_BYTES) -> bytes:
        """Return the content of a file in the guest; see `Files.read`."""
        return await self.files_of(user).read(path, limit=limit)

    async def write_file(self, path: str, data: bytes, *, mode: int | None = None, user: str | None = None) -> None:
        """Write a file in the guest; see `Files.write`."""
        await self.files_of(user).write(path, data, mode=mode)

    async def upload(self, source: Path | str, target: str, *, user: str | None = None) -> TreeReport:
        """Copy a file or a whole directory of this host to `target` in the guest; see `TreeReport`."""
        return await transfer.upload(self.files_of(user), Path(source), target)

    async def download(self, source: str, target: Path | str, *, user: str | None = None) -> TreeReport:
        """Copy a file or a whole directory of the guest to `target` on this host, which must not exist.

        Nothing is ever written beside `target`, whatever names the guest gives; see `TreeReport`.
        """
        return await transfer.download(self.files_of(user), source, Path(target))

    async def _run(self, op: str, fields: Mapping[str, object], options: RunOptions) -> Result:
        programs = {key: value for key, value in options.items() if key not in ("stdin", "on_output", "pty")}
        request = _request(op, fields, programs, pty=options.get("pty"))
        stdin, sink = options.get("stdin", b""), options.get("on_output")
        async with killing(self._client.start(request)) as execution:
            if isinstance(stdin, bytes):
                execution.feed(stdin)
                return await _follow(execution, sink)
            return await beside(lambda: _feed(execution, stdin), lambda: _follow(execution, sink))


def _request(
    op: str, fields: Mapping[str, object], options: Mapping[str, object], *, pty: tuple[int, int] | None
) -> Request:
    renamed = {{"capture_bytes": "keep_bytes"}.get(key, key): value for key, value in options.items()}
    return _checked(lambda: Request(op, fields, pty=pty, **renamed))  # type: ignore[arg-type]


def _checked(make: Callable[[], Request]) -> Request:
    """Return the request; an option that does not exist is the caller's mistake."""
    try:
        return make()
    except TypeError as error:
        raise ConfigError(f"{error}".replace("Request.__init__()", "the call")) from error


async def _feed(execution: Execution, stdin: AsyncIterable[bytes]) -> None:
    async for data in stdin:
        await execution.write(data)
    await execution.close_stdin()


async def _follow(execution: Execution, sink: OutputSink | None) -> Result:
    """Pass output on, if anybody wants it, and return the result."""
    if sink is None:
        return await execution.wait()
    events = execution.events()
    try:
        with anyio.CancelScope() as passing:
            await beside(lambda: _stop_passing(execution, passing), lambda: _pass_all(events, sink))
        return await execution.wait()
    finally:
        events.close()


async def _pass_all(events: Events, sink: OutputSink) -> None:
    async for event in events:
        if isinstance(event, Output) and inspect.isawaitable(answer := sink(event.stream, event.data)):
            await answer


async def _stop_passing(execution: Execution, passing: anyio.CancelScope) -> None:
    """Do not let a sink that is stuck hold up the result of a program that had to be killed."""
    await execution.wait_over()
    if execution.was_stopped:
        await anyio.sleep(KILL_SECONDS)
        passing.cancel()
