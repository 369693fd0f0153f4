"""The audit log: what happened to VMs, leases and executions, one line of JSON each, in a file that rotates."""

from __future__ import annotations

import atexit
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType

from anyio.to_thread import run_sync

from sandbox.errors import ConfigError
from sandbox.event import LifeEvent
from sandbox.handle import Handle
from sandbox.log import log
from sandbox.observe.audit_line import audit_line, gap_line
from sandbox.observe.rotating_file import RotatingFile

_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 10.0
_BATCH = 256
Line = Callable[[], str]


class AuditLog(Handle):
    """An observer of any number of pools that writes what they tell.

        async with AuditLog("audit.jsonl") as audit, VMPool(config, observers=[audit]) as pool: ...

    It never blocks the event loop: a thread writes. Each line is handed to the kernel as soon as the thread gets to
    it, most often within a millisecond, so only what is still queued goes when this process is killed; the disk is
    told to keep it (fsync) when a file is full and at the end, or after each batch with `sync`. At most `max_queued`
    events wait; those beyond are counted, and a line `audit_gap` says how many of which kind are missing there. While
    nothing can be written, because the disk is full, the queue holds what it can and writing is tried every second.

    A line holds names, times, causes and counts. It never holds code, arguments, environments, files or output.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: int = 16 * 1024 * 1024,
        keep: int = 5,
        max_queued: int = 10_000,
        sync: bool = False,
    ) -> None:
        """Open, and if need be create, the file with mode 0600, and lock it; blocks for as long as that takes.

        A file that would grow beyond `max_bytes` becomes PATH.1, that one PATH.2 and so on; `keep` of them are kept.
        Raises `ConfigError` when the file cannot be opened, or another audit log writes to it.
        """
        if max_bytes < 1 or keep < 0 or max_queued < 1:
            raise ConfigError(f"max_bytes {max_bytes}, keep {keep}, max_queued {max_queued}: give 1, 0, 1 or more")
        self.path = Path(path).absolute()
        self._file = RotatingFile(self.path, max_bytes=max_bytes, keep=keep)
        self._max_queued = max_queued
        self._sync = sync
        self._queue: SimpleQueue[Line | None] = SimpleQueue()
        self._missing: Counter[str] = Counter()
        self._missing_since: datetime | None = None
        self._putting = threading.Lock()  # among pools in several threads; the writer never takes it
        self._is_closed = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="sandbox-audit-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"<AuditLog {self.path} {'closed' if self._is_closed else 'open'} queued={self._queue.qsize()}>"

    def __call__(self, event: LifeEvent) -> None:
        """Take an event; never waits for the disk."""
        with self._putting:
            if self._is_closed:
                raise ConfigError(f"the audit log {self.path} was closed before the pool: {event.kind} is not in it")
            if self._queue.qsize() >= self._max_queued:
                self._missing[event.kind.value] += 1
                self._missing_since = self._missing_since or event.at
                return
            self._put_gap()
            self._queue.put(lambda: audit_line(event))

    def close(self) -> None:
        """Write what is queued and close the file. Blocks, for 10 s at most; may be called twice."""
        with self._putting:
            was_closed, self._is_closed = self._is_closed, True
            if not was_closed:
                self._put_gap()
                self._queue.put(None)
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS)
        atexit.unregister(self.close)
        if self._thread.is_alive():
            log.error("audit_log_not_drained", path=str(self.path), lines=self._queue.qsize())

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def aclose(self) -> None:
        """Do the same without blocking the event loop."""
        await run_sync(self.close)

    async def __aenter__(self) -> AuditLog:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _put_gap(self) -> None:
        if self._missing:
            missing, since, until = dict(self._missing), self._missing_since, datetime.now(UTC)
            self._missing.clear()
            self._missing_since = None
            self._queue.put(lambda: gap_line(missing, since or until, until))

    def _write_all(self) -> None:
        """Write until told to end; the only code that touches the file."""
        try:
            is_last = False
            while not is_last:
                lines, is_last = self._next_lines()
                if lines and not self._write(lines):
                    left = len(lines) + self._queue.qsize() - (not is_last)
                    log.error("audit_log_incomplete", path=str(self.path), lines=left)
                    return
        finally:
            self._file.close()

    def _next_lines(self) -> tuple[list[str], bool]:
        """Wait for a line, and return what is there by then; whether the end was."""
        entries = [self._queue.get()]
        with suppress(Empty):
            while entries[-1] is not None and len(entries) < _BATCH:
                entries.append(self._queue.get_nowait())
        return [entry() for entry in entries if entry is not None], entries[-1] is None

    def _write(self, lines: list[str]) -> bool:
        """Write lines, again and again while the disk refuses; return False when closing ends the attempts."""
        failed_at: float | None = None
        while True:
            is_last_attempt = self._closing.is_set()  # asked before it: what failed earlier may succeed now
            try:
                while lines:
                    self._file.write(lines[0].encode())
                    del lines[0]
                if self._sync:
                    self._file.sync()
            except OSError as error:
                if failed_at is None:
                    failed_at = time.monotonic()
                    log.error("audit_log_cannot_write", path=str(self.path), error=str(error))
                if is_last_attempt:
                    return False
                self._closing.wait(_RETRY_SECONDS)
                continue
            if failed_at is not None:
                log.warning("audit_log_writes_again", path=str(self.path), seconds=time.monotonic() - failed_at)
            return True
