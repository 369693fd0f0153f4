"""A directory of this host as a tree to send: small files in batches, large ones alone."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from sandbox.errors import HostFileError
from sandbox.guest.hostfile import refusal
from sandbox.guest.tree import MOST_ENTRIES, Omissions
from sandbox.message import DATA_BYTES

Links = Literal["keep", "follow", "skip"]
_SMALL = 32 * 1024
_ENTRIES = 500
_CHARACTERS = 256 * 1024
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_WORDS = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
_Way = tuple[tuple[int, int], ...]
"""Device and inode of each directory on the way down, so that no link leads round in a circle."""


@dataclass
class Batch:
    """Entries that are sent in one message; the contents of the files among them follow in another one."""

    entries: list[dict[str, object]] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    size: int = 0
    characters: int = 0


@dataclass(frozen=True)
class Large:
    """A file that is sent on its own: read it from `fd` before the next part is asked for, which closes it."""

    entry: dict[str, object]
    fd: int


class TreeReader:
    """Reads a directory part by part. Blocks: use it from a thread.

    Each component is opened in its own directory; links are followed only if `links` says so. What cannot be read
    goes to `omissions`, or is raised if `strict`.
    """

    def __init__(self, top: Path, *, links: Links, exclude: Sequence[str], strict: bool) -> None:
        self._path, self._links, self._exclude, self._is_strict = top, links, tuple(exclude), strict
        self._unfollowed = 0 if links == "follow" else os.O_NOFOLLOW
        self._batch = Batch()
        self._followed_left = MOST_ENTRIES
        self.omissions = Omissions()
        try:
            self._top = os.open(top, _FLAGS | os.O_DIRECTORY)
        except OSError as error:
            raise refusal(error, f"{top} cannot be read") from error
        self._parts = self._read()

    def next(self) -> Batch | Large | None:
        """Return the next part, or None at the end."""
        return next(self._parts, None)

    def fail(self, name: str, error: OSError) -> None:
        """Note what cannot be read; raise `HostFileError` instead if that is how it is wanted."""
        if self._is_strict:
            raise refusal(error, f"{self._path / name} cannot be read") from error
        self.omissions.fail(name, error.strerror or str(error))

    def close(self) -> None:
        self._parts.close()
        os.close(self._top)

    def _read(self) -> Generator[Batch | Large, None, None]:
        pending: list[tuple[str, _Way]] = [("", (_identity(os.fstat(self._top)),))]
        while pending:
            relative, way = pending.pop()
            try:
                fd = self._open_directory(relative)
            except OSError as error:
                self.fail(relative, error)
                continue
            try:
                with os.scandir(fd) as found:
                    for item in found:
                        name = f"{relative}/{item.name}" if relative else item.name
                        if any(fnmatchcase(name, one) or fnmatchcase(item.name, one) for one in self._exclude):
                            continue
                        yield from self._read_one(fd, item, name, way, pending)
            finally:
                os.close(fd)
        if self._batch.entries:
            yield self._batch

    def _read_one(
        self, fd: int, item: os.DirEntry[str], name: str, way: _Way, pending: list[tuple[str, _Way]]
    ) -> Iterator[Batch | Large]:
        try:
            status = item.stat(follow_symlinks=self._links == "follow")
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFREG:
                yield from self._read_file(fd, item.name, name)
            elif kind == stat.S_IFDIR:
                identity = _identity(status)
                if identity in way:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                yield from self._add(_entry("directory", name, status, stat.S_IMODE(status.st_mode) & 0o777 | 0o700))
                pending.append((name, (*way, identity)))
            elif kind == stat.S_IFLNK and self._links == "keep":
                entry = _entry("symlink", name, status, 0o777)
                target = os.readlink(item.name, dir_fd=fd)
                yield from self._add({**entry, "target": target}, characters=len(target))
            else:
                self.omissions.skip(name, f"it is a {'symlink' if kind == stat.S_IFLNK else _WORDS[kind]}")
        except FileNotFoundError as error:
            if item.is_symlink():  # one that points nowhere
                self.fail(name, error)
        except HostFileError:
            raise
        except OSError as error:
            self.fail(name, error)

    def _read_file(self, directory: int, short: str, name: str) -> Iterator[Batch | Large]:
        fd = os.open(short, _FLAGS | self._unfollowed, dir_fd=directory)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file any more")
            entry = _entry("file", name, status, stat.S_IMODE(status.st_mode) & 0o777)
            if status.st_size <= _SMALL:
                data = os.read(fd, status.st_size + 1)
                if len(data) <= status.st_size:
                    yield from self._add({**entry, "size": len(data)}, data)
                    return
                os.lseek(fd, 0, os.SEEK_SET)  # it grows, or is one of the kernel's, which have no size
            yield from self._flush()
            self._count()
            yield Large(entry, fd)
        finally:
            os.close(fd)

    def _add(self, entry: dict[str, object], data: bytes = b"", characters: int = 0) -> Iterator[Batch]:
        if self._batch.size + len(data) > DATA_BYTES:
            yield from self._flush()
        self._count()
        batch = self._batch
        batch.entries.append(entry)
        batch.contents.append(data)
        batch.size += len(data)
        batch.characters += len(str(entry["name"])) + characters
        if len(batch.entries) >= _ENTRIES or batch.characters >= _CHARACTERS:
            yield from self._flush()

    def _count(self) -> None:
        """Refuse a tree whose links lead to the same directories so often that it would have no end in practice."""
        self._followed_left -= self._links == "follow"
        if self._followed_left < 0:
            raise HostFileError(errno.EFBIG, f"{self._path} has more than {MOST_ENTRIES} entries if links are followed")

    def _flush(self) -> Iterator[Batch]:
        batch, self._batch = self._batch, Batch()
        if batch.entries:
            yield batch

    def _open_directory(self, relative: str) -> int:
        fd = os.open(".", _FLAGS | os.O_DIRECTORY, dir_fd=self._top)
        for part in relative.split("/") if relative else ():
            try:
                below = os.open(part, _FLAGS | os.O_DIRECTORY | self._unfollowed, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _entry(kind: str, name: str, status: os.stat_result, mode: int) -> dict[str, object]:
    return {"type": kind, "name": name, "mode": mode, "mtime": status.st_mtime_ns, "size": status.st_size}
