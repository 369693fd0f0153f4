"""A file of lines that is renamed when it is full, and never holds half a line."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from sandbox.errors import ConfigError
from sandbox.inherited import Descriptor


class RotatingFile:
    """Appends whole lines. Every method blocks."""

    def __init__(self, path: Path, *, max_bytes: int, keep: int) -> None:
        """Open and lock the file; raise `ConfigError` when that cannot be done."""
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        try:
            self._file: Descriptor | None = self._open()
        except BlockingIOError as error:
            raise ConfigError(f"another process, or another log of this one, writes to {path}") from error
        except OSError as error:
            raise ConfigError(f"the log {path} cannot be opened: {error.strerror}") from error

    def write(self, line: bytes) -> None:
        """Append a line, to a new file if it would make this one too large.

        Raises `OSError` when it cannot be written; then nothing of it is in the file, and it may be tried again.
        """
        if self._file is not None and self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        if self._file is None:
            self._file = self._open()
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file.fileno(), line[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)
            raise
        self._size += written

    def sync(self) -> None:
        """Have the disk keep what was written."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Have the disk keep it and let go of the file. May be called twice."""
        if self._file is not None:
            with suppress(OSError):  # told by the kernel too late for us to do anything
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _open(self) -> Descriptor:
        # A link that somebody put there could have us append to any file of ours.
        flags = os.O_CREAT | os.O_APPEND | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        opened = Descriptor(os.open(self._path, flags, 0o600))
        file = opened.fileno()
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(file, 0o600)  # it may have been there with another mode
            self._size = os.fstat(file).st_size
            if self._size and os.pread(file, 1, self._size - 1) != b"\n":  # the host went down in the midst of a line
                self._size += os.write(file, b"\n")
        except BaseException:
            opened.close()
            raise
        return opened

    def _rotate(self) -> None:
        """Rename PATH.n to PATH.n+1, from the oldest on, and PATH to PATH.1. The next write makes a new file."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        numbered = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, self._keep + 1))]
        for older, newer in reversed(list(zip(numbered[1:], numbered[:-1], strict=True))):
            with suppress(FileNotFoundError):
                newer.replace(older)
        if not self._keep:
            self._path.unlink(missing_ok=True)
        self._file.close()
        self._file = None
