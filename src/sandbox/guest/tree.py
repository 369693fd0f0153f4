"""A guest's directory on this host. Nothing is ever opened here by a name that the guest chose alone: every component
is opened in its own directory, without following links, and files are made, never overwritten."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import HostFileError
from sandbox.guest.entry import FileEntry
from sandbox.guest.hostfile import write_host

MOST_BYTES = 1024 * 1024 * 1024
MOST_ENTRIES = 100_000
MOST_DEPTH = 64
NAME_BYTES = 255
"""The longest name of a file on Linux."""
MOST_SKIPPED_CHARACTERS = 4 * 1024 * 1024
"""The names of what was skipped are kept for the report; they may have so many characters in all."""


@dataclass(frozen=True, slots=True)
class TreeReport:
    """What was copied, and what was not because it is neither a file nor a directory."""

    files: int
    directories: int
    bytes: int
    skipped: tuple[str, ...]


class TreeWriter:
    """Writes what a guest says below one new directory, and nowhere else. Blocks: use it from a thread."""

    def __init__(self, target: Path, most_bytes: int, most_entries: int) -> None:
        try:
            target.mkdir(mode=0o700)
            self._top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise HostFileError(error.errno, f"cannot make {target}: {error.strerror}; name a new directory") from error
        self._file = -1
        self._left = most_bytes
        self._entries_left = most_entries
        self._files = self._directories = self._bytes = 0
        self._skipped: list[str] = []
        self._skipped_left = MOST_SKIPPED_CHARACTERS

    def begin(self, entry: FileEntry) -> None:
        """Make what `entry` names: a directory, or a file that `write` fills."""
        self._entries_left -= 1
        if self._entries_left < 0:
            raise HostFileError(errno.EFBIG, "the guest's directory has more entries than allowed")
        parts = _components(entry.name)
        if entry.type not in ("file", "directory"):
            self._skipped_left -= len(entry.name)
            if self._skipped_left < 0:
                raise HostFileError(errno.EFBIG, "the guest's directory has more special files than can be reported")
            self._skipped.append(entry.name)
            return
        parent = -1
        try:
            parent = self._open_parent(parts[:-1])
            if entry.type == "directory":
                os.mkdir(parts[-1], mode=entry.mode & 0o777 | 0o700, dir_fd=parent)
                self._directories += 1
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._file = os.open(parts[-1], flags, entry.mode & 0o777 | 0o600, dir_fd=parent)
                self._files += 1
        except OSError as error:
            raise HostFileError(error.errno, f"{entry.name!r} cannot be made: {error.strerror}") from error
        finally:
            if parent >= 0:
                os.close(parent)

    def write(self, data: bytes) -> None:
        """Add content to the file that was begun last."""
        self._left -= len(data)
        if self._left < 0:
            raise HostFileError(errno.EFBIG, "the guest's directory has more bytes than allowed")
        write_host(self._file, data)
        self._bytes += len(data)

    def end(self) -> None:
        os.close(self._file)
        self._file = -1

    def report(self) -> TreeReport:
        return TreeReport(self._files, self._directories, self._bytes, tuple(self._skipped))

    def close(self) -> None:
        for fd in (self._file, self._top):
            if fd >= 0:
                os.close(fd)
        self._file = self._top = -1

    def _open_parent(self, parts: list[str]) -> int:
        """Return a descriptor of the directory; each step is one component that is no link."""
        fd = os.dup(self._top)
        for part in parts:
            try:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd


def _components(name: str) -> list[str]:
    """Split a relative name from the guest; raise `HostFileError` unless each part is an ordinary name."""
    if name.count("/") >= MOST_DEPTH:
        raise HostFileError(errno.ENAMETOOLONG, f"the guest's directory is more than {MOST_DEPTH} levels deep")
    parts = name.split("/")
    if not all(_is_ordinary(part) for part in parts):
        raise HostFileError(
            errno.EINVAL, f"the guest named a file {name[:200]!r}, which is no name within the directory"
        )
    return parts


def _is_ordinary(part: str) -> bool:
    if part in ("", ".", "..") or "\0" in part or len(part) > NAME_BYTES:
        return False
    try:
        return len(os.fsencode(part)) <= NAME_BYTES
    except UnicodeEncodeError:  # no bytes of a name are decoded to this
        return False
