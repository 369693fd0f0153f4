"""The inside of a leased VM for synchronous callers: the names and promises are those of the asynchronous classes."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from sandbox.guest import context as asynchronous_context
from sandbox.guest import execution as asynchronous_execution
from sandbox.guest import files as asynchronous_files
from sandbox.guest.entry import Change, FileEntry, FileStat
from sandbox.guest.events import Event, Events, Output, StreamName
from sandbox.guest.execution import Status
from sandbox.guest.files import READ_BYTES
from sandbox.guest.sandbox import ProgramOptions, RunOptions
from sandbox.guest.tree import TreeReport
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
    def status(self) -> Status:
        return self._inner.status

    @property
    def outcome(self) -> Outcome | None:
        return self._inner.outcome

    def wait(self) -> Result:
        return self._portal.call(self._inner.wait())

    def events(self, *, stdout_offset: int = 0, stderr_offset: int = 0) -> Iteration[Event]:
        async def follow() -> Events:
            return self._inner.events(stdout_offset=stdout_offset, stderr_offset=stderr_offset)

        return Iteration(self._portal, self._portal.call(follow()))

    def read(self, stream: StreamName, offset: int = 0, max_bytes: int = 1024 * 1024) -> Output:
        return self._portal.call(self._inner.read(stream, offset, max_bytes))

    def write(self, data: bytes) -> None:
        self._portal.call(self._inner.write(data))

    def close_stdin(self) -> None:
        self._portal.call(self._inner.close_stdin())

    def send_signal(self, number: int, *, tree: bool = False) -> None:
        async def send() -> None:
            self._inner.send_signal(number, tree=tree)

        self._portal.call(send())

    def kill(self) -> None:
        async def kill() -> None:
            self._inner.kill()

        self._portal.call(kill())

    def resize(self, rows: int, columns: int) -> None:
        async def resize() -> None:
            self._inner.resize(rows, columns)

        self._portal.call(resize())


class Context:
    """A persistent interpreter; see `sandbox.Context`."""

    def __init__(self, portal: Portal, context: asynchronous_context.Context) -> None:
        self._portal = portal
        self._inner = context

    @property
    def id(self) -> str:
        return self._inner.id

    @property
    def is_alive(self) -> bool:
        return self._inner.is_alive

    def run(self, code: str, *, timeout: float | None = None) -> CellResult:
        return self._portal.call(self._inner.run(code, timeout=timeout))

    def interrupt(self) -> None:
        async def interrupt() -> None:
            self._inner.execution.send_signal(signal.SIGINT)

        self._portal.call(interrupt())

    def close(self) -> None:
        self._portal.call(self._inner.aclose())

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Files:
    """Files in the guest; see `sandbox.Files`."""

    def __init__(self, portal: Portal, files: asynchronous_files.Files) -> None:
        self._portal = portal
        self._inner = files

    def read(self, path: str, *, offset: int = 0, limit: int = READ_BYTES) -> bytes:
        return self._portal.call(self._inner.read(path, offset=offset, limit=limit))

    def stream(self, path: str, *, offset: int = 0) -> Iteration[bytes]:
        return Iteration(self._portal, self._inner.stream(path, offset=offset))

    def write(
        self,
        path: str,
        content: bytes | Iterable[bytes],
        *,
        mode: int | None = None,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = False,
    ) -> FileStat:
        pieces = content if isinstance(content, bytes) else b"".join(content)
        writing = self._inner.write(path, pieces, mode=mode, append=append, exclusive=exclusive, parents=parents)
        return self._portal.call(writing)

    def append(self, path: str, content: bytes) -> FileStat:
        return self._portal.call(self._inner.append(path, content))

    def stat(self, path: str, *, follow: bool = True) -> FileStat:
        return self._portal.call(self._inner.stat(path, follow=follow))

    def exists(self, path: str) -> bool:
        return self._portal.call(self._inner.exists(path))

    def list(self, path: str = ".") -> list[FileEntry]:
        return self._portal.call(self._inner.list(path))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        self._portal.call(self._inner.remove(path, recursive=recursive))

    def move(self, path: str, target: str, *, replace: bool = True) -> None:
        self._portal.call(self._inner.move(path, target, replace=replace))

    def mkdir(self, path: str, *, parents: bool = False, mode: int | None = None) -> None:
        self._portal.call(self._inner.mkdir(path, parents=parents, mode=mode))

    def chmod(self, path: str, mode: int) -> None:
        self._portal.call(self._inner.chmod(path, mode))

    @contextmanager
    def watch(self, path: str = ".", *, recursive: bool = False) -> Iterator[Iterator[Change]]:
        with self._portal.enter(self._inner.watch(path, recursive=recursive)) as changes:
            yield Iteration(self._portal, changes)


class Sandbox:
    """The inside of one leased VM; see `sandbox.Sandbox`. `on_output` is called from another thread."""

    def __init__(self, portal: Portal, vm: VM) -> None:
        self._portal = portal
        self._inner = vm

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def is_alive(self) -> bool:
        return self._inner.is_alive

    def run(
        self, code: str, *, language: str = "python", args: Sequence[str] = (), **options: Unpack[RunOptions]
    ) -> Result:
        return self._portal.call(self._inner.run(code, language=language, args=args, **options))

    def exec(self, argv: Sequence[str] | str, **options: Unpack[RunOptions]) -> Result:
        return self._portal.call(self._inner.exec(argv, **options))

    def spawn(
        self,
        argv: Sequence[str] | str,
        *,
        stdin: bytes | None = b"",
        pty: tuple[int, int] | None = None,
        **options: Unpack[ProgramOptions],
    ) -> Execution:
        return Execution(self._portal, self._portal.call(self._inner.spawn(argv, stdin=stdin, pty=pty, **options)))

    def attach(self, ident: str) -> Execution:
        return Execution(self._portal, self._inner.attach(ident))

    def status(self, ident: str) -> Status:
        return self._inner.status(ident)

    @contextmanager
    def context(self, language: str = "python", **options: Unpack[ProgramOptions]) -> Iterator[Context]:
        with self._portal.enter(self._inner.context(language, **options)) as context:
            yield Context(self._portal, context)

    @property
    def files(self) -> Files:
        return self.files_of(None)

    def files_of(self, user: str | None) -> Files:
        return Files(self._portal, self._inner.files_of(user))

    def read_file(self, path: str, *, user: str | None = None, limit: int = READ_BYTES) -> bytes:
        return self.files_of(user).read(path, limit=limit)

    def write_file(self, path: str, data: bytes, *, mode: int | None = None, user: str | None = None) -> None:
        self.files_of(user).write(path, data, mode=mode)

    def upload(self, source: Path | str, target: str, *, user: str | None = None) -> TreeReport:
        return self._portal.call(self._inner.upload(source, target, user=user))

    def download(self, source: str, target: Path | str, *, user: str | None = None) -> TreeReport:
        return self._portal.call(self._inner.download(source, target, user=user))
