"""The inside of a leased VM for synchronous callers: the names and promises are those of the asynchronous classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Unpack

from sandbox import arguments
from sandbox.arguments import Data, GuestPath
from sandbox.errors import ConfigError, GuestLost
from sandbox.guest import context as asynchronous_context
from sandbox.guest import execution as asynchronous_execution
from sandbox.guest import files as asynchronous_files
from sandbox.guest.cell import OutputSink
from sandbox.guest.context import Default
from sandbox.guest.entry import Change, FileEntry, FileStat
from sandbox.guest.events import Event, Events, Output, StreamName
from sandbox.guest.execution import Status
from sandbox.guest.files import LIST_ENTRIES, READ_BYTES
from sandbox.guest.identity import Receipt
from sandbox.guest.sandbox import ProgramOptions, RunOptions
from sandbox.guest.tree import MOST_BYTES, MOST_ENTRIES, TreeReport
from sandbox.guest.treereader import Links
from sandbox.result import CellResult, Outcome, Result
from sandbox.sync.portal import Iteration, Portal
from sandbox.vm import VM


class Execution:
    """A program that was started; see `sandbox.Execution`."""

    def __init__(self, portal: Portal, execution: asynchronous_execution.Execution) -> None:
        self._portal = portal
        self._inner = execution

    @property
    def id(self) -> str:
        return self._inner.id

    @property
    def pid(self) -> int | None:
        return self._inner.pid

    @property
    def vm(self) -> str:
        return self._inner.vm

    @property
    def accelerator(self) -> str:
        return self._inner.accelerator

    @property
    def status(self) -> Status:
        return self._inner.status

    @property
    def has_ended(self) -> bool:
        return self._inner.has_ended

    @property
    def was_stopped(self) -> bool:
        return self._inner.was_stopped

    @property
    def seconds(self) -> float | None:
        return self._inner.seconds

    @property
    def outcome(self) -> Outcome | None:
        return self._inner.outcome

    def wait(self) -> Result:
        return self._portal.call(self._inner.wait())

    def wait_over(self) -> None:
        self._portal.call(self._inner.wait_over())

    def events(self, *, stdout_offset: int = 0, stderr_offset: int = 0) -> Iteration[Event]:
        def follow() -> Events:
            return self._inner.events(stdout_offset=stdout_offset, stderr_offset=stderr_offset)

        return Iteration(self._portal, self._portal.do(follow))

    def read(self, stream: StreamName, offset: int = 0, max_bytes: int = 1024 * 1024) -> Output:
        return self._portal.call(self._inner.read(stream, offset, max_bytes))

    def write(self, data: Data) -> None:
        self._portal.call(self._inner.write(data))

    def close_stdin(self) -> None:
        self._portal.call(self._inner.close_stdin())

    def send_signal(self, number: int, *, tree: bool = False) -> None:
        self._portal.do(lambda: self._inner.send_signal(number, tree=tree))

    def kill(self) -> None:
        self._portal.do(self._inner.kill)

    def resize(self, rows: int, columns: int) -> None:
        self._portal.do(lambda: self._inner.resize(rows, columns))


class Context:
    """A persistent interpreter; see `sandbox.Context`."""

    def __init__(self, portal: Portal, context: asynchronous_context.Context) -> None:
        self._portal = portal
        self._inner = context

    @property
    def id(self) -> str:
        return self._inner.id

    @property
    def language(self) -> str:
        return self._inner.language

    @property
    def execution(self) -> Execution:
        return Execution(self._portal, self._inner.execution)

    @property
    def is_alive(self) -> bool:
        return self._inner.is_alive

    def run(
        self,
        code: str,
        *,
        timeout: float | Default | None = Default.OF_THE_POOL,
        on_output: OutputSink | None = None,
        capture_bytes: int | None = None,
    ) -> CellResult:
        running = self._inner.run(code, timeout=timeout, on_output=on_output, capture_bytes=capture_bytes)
        return self._portal.call(running)

    def interrupt(self) -> None:
        self._portal.do(self._inner.interrupt)

    def close(self) -> None:
        self._portal.call(self._inner.aclose())

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._portal.is_running:
            self.close()


class Files:
    """Files in the guest; see `sandbox.Files`."""

    def __init__(self, portal: Portal, files: asynchronous_files.Files) -> None:
        self._portal = portal
        self._inner = files

    def read(self, path: GuestPath, *, offset: int = 0, limit: int = READ_BYTES, timeout: float | None = None) -> bytes:
        return self._portal.call(self._inner.read(path, offset=offset, limit=limit, timeout=timeout))

    def stream(self, path: GuestPath, *, offset: int = 0, limit: int | None = None) -> Iteration[bytes]:
        return Iteration(self._portal, self._inner.stream(path, offset=offset, limit=limit))

    def write(
        self,
        path: GuestPath,
        content: Data | Iterable[Data],
        *,
        mode: int | None = None,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = False,
    ) -> FileStat:
        pieces = _joined(content)
        writing = self._inner.write(path, pieces, mode=mode, append=append, exclusive=exclusive, parents=parents)
        return self._portal.call(writing)

    def append(self, path: GuestPath, content: Data | Iterable[Data]) -> FileStat:
        return self.write(path, content, append=True)

    def stat(self, path: GuestPath, *, follow: bool = True) -> FileStat:
        return self._portal.call(self._inner.stat(path, follow=follow))

    def exists(self, path: GuestPath) -> bool:
        return self._portal.call(self._inner.exists(path))

    def list(
        self, path: GuestPath = ".", *, limit: int = LIST_ENTRIES, timeout: float | None = None
    ) -> list[FileEntry]:
        return self._portal.call(self._inner.list(path, limit=limit, timeout=timeout))

    def remove(self, path: GuestPath, *, recursive: bool = False) -> None:
        self._portal.call(self._inner.remove(path, recursive=recursive))

    def move(self, path: GuestPath, target: GuestPath, *, replace: bool = True) -> None:
        self._portal.call(self._inner.move(path, target, replace=replace))

    def mkdir(self, path: GuestPath, *, parents: bool = False, mode: int | None = None) -> None:
        self._portal.call(self._inner.mkdir(path, parents=parents, mode=mode))

    def chmod(self, path: GuestPath, mode: int) -> None:
        self._portal.call(self._inner.chmod(path, mode))

    @contextmanager
    def watch(self, path: GuestPath = ".", *, recursive: bool = False) -> Iterator[Iterator[Change]]:
        with self._portal.enter(self._inner.watch(path, recursive=recursive)) as changes:
            yield Iteration(self._portal, changes)


def _joined(content: Data | Iterable[Data]) -> bytes:
    if isinstance(content, bytes | str | bytearray | memoryview):
        return arguments.data("content", content)
    if not isinstance(content, Iterable):
        raise ConfigError(f"content is a {type(content).__name__}; give bytes, a string, or an iterable of them")
    return b"".join(arguments.data("a piece of content", piece) for piece in content)


class Sandbox:
    """One leased VM; see `sandbox.Sandbox` and `sandbox.VM`.

    `on_output` is called from another thread, which every call of `sandbox.sync` waits for: one that waits raises
    `StateError` there.
    """

    def __init__(self, portal: Portal, vm: VM) -> None:
        self._portal = portal
        self._inner = vm

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def languages(self) -> tuple[str, ...]:
        return self._inner.languages

    @property
    def pid(self) -> int:
        return self._inner.pid

    @property
    def is_alive(self) -> bool:
        return self._inner.is_alive

    @property
    def loss(self) -> GuestLost | None:
        return self._inner.loss

    @property
    def receipt(self) -> Receipt | None:
        return self._inner.receipt

    @property
    def timings(self) -> Mapping[str, float]:
        return self._inner.timings

    @property
    def idle_seconds(self) -> float:
        return self._portal.do(lambda: self._inner.idle_seconds)

    def console(self) -> str:
        return self._portal.do(self._inner.console)

    def run(
        self,
        code: str,
        *,
        language: str = "python",
        args: Sequence[GuestPath] = (),
        name: str = "",
        **options: Unpack[RunOptions],
    ) -> Result:
        return self._portal.call(self._inner.run(code, language=language, args=args, name=name, **options))

    def exec(self, argv: Sequence[GuestPath] | str, **options: Unpack[RunOptions]) -> Result:
        return self._portal.call(self._inner.exec(argv, **options))

    def spawn(
        self,
        argv: Sequence[GuestPath] | str,
        *,
        stdin: Data | None = b"",
        pty: tuple[int, int] | None = None,
        **options: Unpack[ProgramOptions],
    ) -> Execution:
        spawning = self._inner.spawn(argv, stdin=stdin, pty=pty, **options)
        return Execution(self._portal, self._portal.call(spawning, give_back=lambda execution: execution.kill()))

    def attach(self, ident: str) -> Execution:
        return Execution(self._portal, self._inner.attach(ident))

    def status(self, ident: str) -> Status:
        return self._inner.status(ident)

    @contextmanager
    def context(self, language: str = "python", **options: Unpack[ProgramOptions]) -> Iterator[Context]:
        with self._portal.enter(self._inner.context(language, **options)) as context:
            yield Context(self._portal, context)

    def open_context(self, language: str = "python", **options: Unpack[ProgramOptions]) -> Context:
        def make() -> asynchronous_context.Context:
            return self._inner.open_context(language, **options)

        return Context(self._portal, self._portal.do(make, give_back=lambda context: context.execution.kill()))

    @property
    def files(self) -> Files:
        return self.files_of(None)

    def files_of(self, user: str | None) -> Files:
        return Files(self._portal, self._inner.files_of(user))

    def read_file(
        self, path: GuestPath, *, user: str | None = None, limit: int = READ_BYTES, timeout: float | None = None
    ) -> bytes:
        return self.files_of(user).read(path, limit=limit, timeout=timeout)

    def write_file(self, path: GuestPath, data: Data, *, mode: int | None = None, user: str | None = None) -> None:
        self._portal.call(self._inner.write_file(path, data, mode=mode, user=user))

    def upload(
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
        return self._portal.call(
            self._inner.upload(
                source,
                target,
                user=user,
                overwrite=overwrite,
                links=links,
                exclude=exclude,
                strict=strict,
                timeout=timeout,
            )
        )

    def download(
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
        return self._portal.call(
            self._inner.download(
                source,
                target,
                user=user,
                overwrite=overwrite,
                links=links,
                strict=strict,
                max_bytes=max_bytes,
                max_entries=max_entries,
                timeout=timeout,
            )
        )
