"""The inside of a leased VM for synchronous callers: the names and promises are those of the asynchronous classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from sandbox.errors import GuestLost
from sandbox.guest import context as asynchronous_context
from sandbox.guest import execution as asynchronous_execution
from sandbox.guest import files as asynchronous_files
from sandbox.guest.entry import Change, FileEntry, FileStat
from sandbox.guest.events import Event, Events, Output, StreamName
from sandbox.guest.execution import Status
from sandbox.guest.files import LIST_ENTRIES, READ_BYTES
from sandbox.guest.identity import Receipt
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

    def write(self, data: bytes) -> None:
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
        timeout: float | None = None,
        on_output: Callable[[StreamName, bytes], None] | None = None,
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

    def append(self, path: str, content: bytes | Iterable[bytes]) -> FileStat:
        return self.write(path, content, append=True)

    def stat(self, path: str, *, follow: bool = True) -> FileStat:
        return self._portal.call(self._inner.stat(path, follow=follow))

    def exists(self, path: str) -> bool:
        return self._portal.call(self._inner.exists(path))

    def list(self, path: str = ".", *, limit: int = LIST_ENTRIES) -> list[FileEntry]:
        return self._portal.call(self._inner.list(path, limit=limit))

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
        args: Sequence[str] = (),
        name: str = "",
        **options: Unpack[RunOptions],
    ) -> Result:
        return self._portal.call(self._inner.run(code, language=language, args=args, name=name, **options))

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

    def open_context(self, language: str = "python", **options: Unpack[ProgramOptions]) -> Context:
        return Context(self._portal, self._portal.do(lambda: self._inner.open_context(language, **options)))

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
