"""What can be done inside a leased VM: run programs, follow them, keep interpreters, handle files."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import anyio

from sandbox.config import Limits
from sandbox.errors import ConfigError, StateError
from sandbox.guest import transfer
from sandbox.guest.client import GuestClient
from sandbox.guest.context import Context
from sandbox.guest.events import Output, StreamName
from sandbox.guest.execution import KILL_SECONDS, Execution, Status, killing
from sandbox.guest.files import READ_BYTES, Files
from sandbox.guest.language import start_request
from sandbox.guest.request import CAPTURE_BYTES, Request, command, script
from sandbox.guest.tree import MOST_BYTES, MOST_ENTRIES, TreeReport
from sandbox.guest.treereader import Links
from sandbox.handle import Handle
from sandbox.result import Result

OutputSink = Callable[[StreamName, bytes], Awaitable[None] | None]
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


class Sandbox(Handle):
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

        With `stdin=None` standard input stays open for `Execution.write`; on a terminal it always does. The program
        runs until it ends, its time-out passes, or the VM is destroyed; nobody needs to wait for it.
        """
        execution = self._client.start(_request("argv", command(argv), options, pty=pty))
        if stdin:
            await execution.write(stdin)
        if stdin is not None and pty is None:
            await execution.close_stdin()
        await self._client.drained()
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

    async def read_file(
        self, path: str, *, user: str | None = None, limit: int = READ_BYTES, timeout: float | None = None
    ) -> bytes:
        """Return the content of a file in the guest; see `Files.read`."""
        return await self.files_of(user).read(path, limit=limit, timeout=timeout)

    async def write_file(self, path: str, data: bytes, *, mode: int | None = None, user: str | None = None) -> None:
        """Write a file in the guest; see `Files.write`."""
        await self.files_of(user).write(path, data, mode=mode)

    async def upload(
        self,
        source: Path | str,
        target: str,
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
            Path(source),
            target,
            overwrite=overwrite,
            links=links,
            exclude=exclude,
            strict=strict,
            timeout=timeout,
        )

    async def download(
        self,
        source: str,
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
            source,
            Path(target),
            overwrite=overwrite,
            links=links,
            strict=strict,
            max_bytes=max_bytes,
            max_entries=max_entries,
            timeout=timeout,
        )

    async def _run(self, op: str, fields: Mapping[str, object], options: RunOptions) -> Result:
        programs = {key: value for key, value in options.items() if key not in ("stdin", "on_output", "pty")}
        request = _request(op, fields, programs, pty=options.get("pty"))
        stdin, sink = options.get("stdin", b""), options.get("on_output")
        async with killing(self._client.start(request)) as execution:
            if isinstance(stdin, bytes) and sink is None:
                await _feed(execution, stdin)
                return await execution.wait()
            return await _converse(execution, stdin, sink)


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


async def _feed(execution: Execution, stdin: Stdin) -> None:
    if isinstance(stdin, bytes):
        await execution.write(stdin)
    else:
        async for data in stdin:
            await execution.write(data)
    await execution.close_stdin()


async def _converse(execution: Execution, stdin: Stdin, sink: OutputSink | None) -> Result:
    """Feed standard input beside passing output on; an error of either ends both and is raised as itself."""
    events = execution.events() if sink is not None else None
    failures: list[Exception] = []

    async def feed() -> None:
        try:
            await _feed(execution, stdin)
        except Exception as error:  # noqa: BLE001 - raised below, outside of the group
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(feed)
        try:
            if events is not None and sink is not None:
                with anyio.CancelScope() as passing:
                    group.start_soon(_stop_passing, execution, passing)
                    async for event in events:
                        if isinstance(event, Output) and inspect.isawaitable(answer := sink(event.stream, event.data)):
                            await answer
            result = await execution.wait()
        except Exception as error:  # noqa: BLE001 - raised below, outside of the group
            failures.append(error)
        finally:
            if events is not None:
                events.close()
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return result


async def _stop_passing(execution: Execution, passing: anyio.CancelScope) -> None:
    """Do not let a sink that is stuck hold up the result of a program that had to be killed."""
    await execution.wait_over()
    if execution.was_stopped:
        await anyio.sleep(KILL_SECONDS)
        passing.cancel()
