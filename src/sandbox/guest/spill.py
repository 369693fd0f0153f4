"""A bounded file on the host for output that does not fit into memory: it has no name, and is written aside."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from anyio.to_thread import run_sync

from sandbox.log import log

BEHIND_BYTES = 256 * 1024
"""With so much waiting to be written, whoever produces should pause."""
_writers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sandbox-spill")


class Spill:
    """Appends in a worker thread, in order, one write at a time. Memory holds what is not written yet."""

    def __init__(self, on_progress: Callable[[], None]) -> None:
        self.size = 0
        self.failure: OSError | None = None
        """Why nothing more is kept: the host's disk is full, for example. `size` then counts what was written."""
        self._on_progress = on_progress
        self._fd = -1
        self._written = 0
        self._waiting = bytearray()
        self._writing: asyncio.Future[int] | None = None

    @property
    def is_behind(self) -> bool:
        return len(self._waiting) > BEHIND_BYTES

    def append(self, data: bytes) -> None:
        """Take data to be written soon."""
        if self.failure is None:
            self.size += len(data)
            self._waiting += data
            self._write_on()

    async def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`, once they are written, whatever else is being written."""
        while self._writing is not None and self._written < offset + size:
            await asyncio.wait([self._writing])
        if self._fd < 0:
            return b""
        return await run_sync(os.pread, self._fd, size, offset)

    def close(self) -> None:
        """Give the file up; what is being written may finish."""
        self.failure = self.failure or OSError("closed")
        self._waiting.clear()
        if self._writing is None and self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(RuntimeError):  # without a thread now, the next one that there is closes it
                _writers.submit(os.close, fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _write_on(self) -> None:
        if self._writing is None and self._waiting:
            data, self._waiting = bytes(self._waiting), bytearray()
            try:
                self._writing = asyncio.get_running_loop().run_in_executor(_writers, self._write, data)
            except RuntimeError as error:  # the host has no thread for it
                self._fail(OSError(errno.EAGAIN, str(error)))
            else:
                self._writing.add_done_callback(self._on_written)

    def _write(self, data: bytes) -> int:
        if self._fd < 0:
            with tempfile.TemporaryFile(prefix="sandbox-output-") as file:
                self._fd = os.dup(file.fileno())
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], self._written + done)
        return done

    def _fail(self, error: OSError) -> None:
        log.warning("output_not_kept", error=str(error), kept=self._written)
        self.failure = error
        self._waiting.clear()
        self.size = self._written

    def _on_written(self, future: asyncio.Future[int]) -> None:
        self._writing = None
        try:
            self._written += future.result()
        except OSError as error:
            self._fail(error)
        except asyncio.CancelledError:  # the event loop is closing
            return
        if self.failure is not None and self.failure.errno is None:
            self.close()
        self._write_on()
        self._on_progress()
