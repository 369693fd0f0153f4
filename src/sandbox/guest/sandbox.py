"""What can be done inside a leased VM: run programs, follow them, keep interpreters, handle files."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, TypedDict, Unpack, cast

import anyio

from sandbox import arguments
from sandbox.arguments import Data, GuestPath
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
from sandbox.guest.request import CAPTURE_BYTES, PROGRAM, RUN, Request, command, script
from sandbox.guest.tree import MOST_BYTES, MOST_ENTRIES, TreeReport
from sandbox.guest.treereader import Links
from sandbox.handle import Handle
from sandbox.result import Result

Stdin = Data | AsyncIterable[Data] | None


class ProgramOptions(TypedDict, total=False):
    """How a program is run; every key may be left out."""

    env: Mapping[str, str] | None
    """Variables besides the guest's own."""
    cwd: GuestPath | None
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
    kill_children: bool
    """Whether what the program leaves running in the background is killed at its end. By default it goes on."""
    id: str
    """A name of the caller's, unique in this VM, for `attach` and `status`; by default one is made."""


class RunOptions(ProgramOptions, total=False):
    """How a program is run to its end."""

    stdin: Stdin
    """Bytes or text, or an asynchronous iterable of them; then standard input ends. Nothing by default."""
    on_output: OutputSink | None
    """Called with (`"stdout"` or `"stderr"`, bytes) as the program writes; awaiting in it slows the program down."""
    pty: tuple[int, int] | None
    """Rows and columns of a terminal to run in, instead of pipes."""


class Sandbox(Handle):
    """The inside of one leased VM. Any number of programs, interpreters and file operations at once.

    Errors of the transport are exceptions (`GuestLost`); whatever a program does is data in its `Result`.
    """

    def __init__(self, client: GuestClient, languages: Sequence[str] = ("python", "bash")) -> None:
        self._client = client
        self.languages = tuple(languages)
        """The languages that `run` takes, as the image declares them."""
        self._files: dict[str | None, Files] = {}
        self._defaults: dict[str, object] = {}

    def set_defaults(self, *, timeout: float | None, idle_timeout: float | None, limits: Limits | None) -> None:
        """Give programs these options where a call does not name them; a call's own None means none."""
        given = {"timeout": timeout, "idle_timeout": idle_timeout, "limits": limits}
        self._defaults = {name: value for name, value in given.items() if value is not None}

    async def run(
        self,
        code: str,
        *,
        language: str = "python",
        args: Sequence[GuestPath] = (),
        name: str = "",
        **options: Unpack[RunOptions],
    ) -> Result:
        """Run code as a script and return how it ended; see `RunOptions`.

        Python runs in a fork of the guest's warm interpreter, other languages in an interpreter of their own. When
        the call is cancelled, the whole process tree is killed. Raises `GuestLost` when the VM dies meanwhile.
        """
        return await self._run(*script(self._language(language), code, args, name), options, "run")

    async def exec(self, argv: Sequence[GuestPath] | str, **options: Unpack[RunOptions]) -> Result:
        """Run a command and return how it ended: an argument vector, or a string for `bash -c`.

        A command that does not exist exits with 127, one that cannot be executed with 126. The rest is as in `run`.
        """
        return await self._run("argv", command(argv), options, "exec")

    async def spawn(
        self,
        argv: Sequence[GuestPath] | str,
        *,
        stdin: Data | None = b"",
        pty: tuple[int, int] | None = None,
        **options: Unpack[ProgramOptions],
    ) -> Execution:
        """Start a command in the background and return at once with its `Execution`: wait, follow, write, signal.

        `stdin` is passed on as the program takes it, however much there is; then standard input ends. With
        `stdin=None` it stays open for `Execution.write`; on a terminal it always does. The program runs until it
        ends, its time-out passes, or the VM is destroyed; nobody needs to wait for it. If the call itself is
        cancelled, the program is killed.
        """
        given = arguments.given(arguments.data, "stdin", stdin)
        size = arguments.given(arguments.terminal, "pty", pty)
        checked = self._defaults | arguments.options(PROGRAM, options, "spawn")
        execution = self._client.start(_request("argv", command(argv), checked, pty=size))
        if given is not None:
            execution.feed(given, is_all=size is None)
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
        execution = self._client.executions.find(arguments.text("ident", ident))
        if execution is None:
            raise StateError(f"no execution {ident!r} was ever started in this VM")
        return execution

    def status(self, ident: str) -> Status:
        """Return whether the execution with this id was never started, runs, or has finished. Never unknown."""
        if not self._client.executions.was_used(arguments.text("ident", ident)):
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
        of its cells, unless `Context.run` is given another number. Of a pool's defaults, the time-out is for each cell
        and the limits are for the interpreter.
        """
        checked = arguments.options(PROGRAM, options, "open_context")
        keep = cast("int", checked.pop("capture_bytes", CAPTURE_BYTES))
        defaults = {name: value for name, value in self._defaults.items() if name == "limits"}
        request = start_request(self._language(language), defaults | checked)
        return Context(self._client, language, request, keep, self._defaults.get("timeout"))

    def _language(self, language: object) -> str:
        if not isinstance(language, str) or language not in self.languages:
            raise ConfigError(f"the image has no language {language!r}; it has {', '.join(self.languages)}")
        return language

    @property
    def files(self) -> Files:
        """Files as the unprivileged user sees them."""
        return self.files_of(None)

    def files_of(self, user: str | None) -> Files:
        """Return files as this user sees them; None is the unprivileged one."""
        name = arguments.given(arguments.filled, "user", user)
        if name not in self._files:
            self._files[name] = Files(self._client, name)
        return self._files[name]

    async def read_file(
        self, path: GuestPath, *, user: str | None = None, limit: int = READ_BYTES, timeout: float | None = None
    ) -> bytes:
        """Return the content of a file in the guest; see `Files.read`."""
        return await self.files_of(user).read(path, limit=limit, timeout=timeout)

    async def write_file(
        self, path: GuestPath, data: Data, *, mode: int | None = None, user: str | None = None
    ) -> None:
        """Write a file in the guest; see `Files.write`."""
        await self.files_of(user).write(path, arguments.data("data", data), mode=mode)

    async def upload(
        self,
        source: Path | str,
        target: GuestPath,
        *,
        user: str | None = None,
        overwrite: bool = True,
        links: Links = "keep",
        exclude: Sequence[str] = (),
        strict: bool = False,
        timeout: float | None = None,
    ) -> TreeReport:
        """Copy a file or a whole directory of this host to `target` in the guest, and make the directories above it.

        Contents, permission bits, and in a directory times of files are kept. Symbolic links of a directory are kept
        as they are, wherever they lead; with `links="follow"` what they lead to is copied instead, with `"skip"` they
        are left out, as special files always are. `exclude` has patterns such as `"*.pyc"` or `".git"`: what they
        match, as a name or as a path below `source`, is left out with all that is in it.

        With `overwrite` directories are merged; files and links give way to what comes, and links are not followed.
        Without it, a target that exists is refused with `EEXIST`.

        What cannot be read here or made there is named in the report, and the rest is copied; with `strict` it is
        raised instead, as `HostFileError` or `GuestFileError`. A copy that takes more than `timeout` seconds raises
        `GuestFileError` with `ETIMEDOUT`. What was copied until then stays.
        """
        return await transfer.upload(
            self.files_of(user),
            arguments.host_path("source", source),
            arguments.path("target", target),
            overwrite=overwrite,
            links=links,
            exclude=exclude,
            strict=strict,
            timeout=timeout,
        )

    async def download(
        self,
        source: GuestPath,
        target: Path | str,
        *,
        user: str | None = None,
        overwrite: bool = False,
        links: Literal["keep", "skip"] = "keep",
        strict: bool = False,
        max_bytes: int = MOST_BYTES,
        max_entries: int = MOST_ENTRIES,
        timeout: float | None = None,
    ) -> TreeReport:
        """Copy a file or a whole directory of the guest to `target` on this host, which must not exist.

        Nothing is ever written outside `target`, whatever names the guest gives. Contents, permission bits without
        set-uid, set-gid and sticky (as the umask allows), and times of files are kept. A symbolic link is kept if it
        cannot lead out of the directory, also not by way of others; the rest of them and special files are left out
        and named in the report.

        With `overwrite` an existing directory is merged: regular files and links in it give way to what comes, and are
        not followed or written to. What else is in the way stays, and is named in the report.

        What the guest cannot read is named in the report, and the rest is copied; with `strict` it is raised instead.
        Raises `HostFileError` with `EFBIG` beyond `max_bytes` (1 GiB by default) or `max_entries`, with `ENOSPC` if a
        file is larger than what is free here, and `GuestFileError` with `ETIMEDOUT` if it takes more than `timeout`
        seconds. Files that were whole by then stay; a file that was not is removed.
        """
        return await transfer.download(
            self.files_of(user),
            arguments.path("source", source),
            arguments.host_path("target", target),
            overwrite=overwrite,
            links=links,
            strict=strict,
            max_bytes=max_bytes,
            max_entries=max_entries,
            timeout=timeout,
        )

    async def _run(self, op: str, fields: Mapping[str, object], options: RunOptions, call: str) -> Result:
        checked = arguments.options(RUN, options, call)
        stdin = cast("bytes | AsyncIterable[Data]", checked.pop("stdin", b""))
        sink = cast("OutputSink | None", checked.pop("on_output", None))
        async with killing(self._client.start(_request(op, fields, self._defaults | checked))) as execution:
            if isinstance(stdin, bytes):
                execution.feed(stdin)
                return await _follow(execution, sink)
            return await beside(lambda: _feed(execution, stdin), lambda: _follow(execution, sink))


def check_run(code: object, language: object, args: object, options: Mapping[str, object]) -> None:
    """Raise `ConfigError` for a `run` that no VM can take, before one is claimed for it."""
    script(arguments.filled("language", language), code, args, "")
    arguments.options({**RUN, "name": arguments.script_name}, options, "run")


def _request(op: str, fields: Mapping[str, object], options: Mapping[str, object], **more: object) -> Request:
    """Return the request of checked options."""
    renamed = {"keep_bytes" if key == "capture_bytes" else key: value for key, value in options.items()}
    return Request(op, fields, **renamed, **more)  # type: ignore[arg-type]


async def _feed(execution: Execution, stdin: AsyncIterable[Data]) -> None:
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
