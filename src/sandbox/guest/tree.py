"""Whole directories between host and guest. On the host, nothing is ever opened by a name that the guest chose alone:
every component is opened in its own directory, without following links, and files are made, never overwritten."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from anyio.to_thread import run_sync
from pydantic import ValidationError

from sandbox.errors import ConfigError, HostFileError
from sandbox.guest.entry import FileEntry
from sandbox.guest.files import Files
from sandbox.guest.fileserver import answer, piece
from sandbox.message import DATA_BYTES

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


async def download(
    files: Files, source: str, target: Path, *, most_bytes: int = MOST_BYTES, most_entries: int = MOST_ENTRIES
) -> TreeReport:
    """Copy a directory of the guest into `target`, a directory on the host that is made and must not exist.

    A single file is copied the same way: `target` is then the file.

    Regular files and directories are copied, with permission bits but without set-uid, set-gid and sticky; links and
    special files are skipped and named in the report. Raises `HostFileError` when a name leads out of the directory
    or a limit is exceeded; what was copied until then stays.
    """
    if (await files.stat(source)).type == "file":
        return await _download_file(files, source, target, most_bytes)
    writer = await run_sync(TreeWriter, target, most_bytes, most_entries)
    try:
        async with files.servers.lend(source) as server:
            await server.ask({"op": "pack", "path": source})
            while "entry" in (fields := await answer(server, source, is_last=False)):
                try:
                    entry = FileEntry.model_validate(fields["entry"])
                except ValidationError as error:
                    raise server.nonsense(str(error).splitlines()[0]) from error
                await run_sync(writer.begin, entry)
                if entry.type == "file":
                    while (data := await piece(server, source)) is not None:
                        await run_sync(writer.write, data)
                    await run_sync(writer.end)
            server.is_idle = True
    finally:
        await run_sync(writer.close)
    return writer.report()


async def upload(files: Files, source: Path, target: str) -> TreeReport:
    """Copy a file or a directory of the host to `target` in the guest, which is made if it is not there.

    Links are not followed: they and special files are skipped and named in the report.
    """
    if await run_sync(source.is_file):
        status = await run_sync(source.stat)
        await files.write(target, read_host(source), mode=stat.S_IMODE(status.st_mode) & 0o777, parents=True)
        return TreeReport(1, 0, status.st_size, ())
    if not await run_sync(source.is_dir):
        raise ConfigError(f"{source} is no file and no directory on this host")
    await files.mkdir(target, parents=True)
    count, directories, size, skipped = 0, 0, 0, []
    for relative, status in await run_sync(_walk, source):
        inside = f"{target}/{relative}"
        if stat.S_ISDIR(status.st_mode):
            await files.mkdir(inside, parents=True, mode=stat.S_IMODE(status.st_mode) | 0o700)
            directories += 1
        elif stat.S_ISREG(status.st_mode):
            await files.write(inside, read_host(source / relative), mode=stat.S_IMODE(status.st_mode) & 0o777)
            count += 1
            size += status.st_size
        else:
            skipped.append(relative)
    return TreeReport(count, directories, size, tuple(skipped))


async def _download_file(files: Files, source: str, target: Path, most_bytes: int) -> TreeReport:
    size = 0
    try:
        fd = await run_sync(os.open, target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise HostFileError(error.errno, f"cannot make {target}: {error.strerror}; name a new file") from error
    try:
        async for data in files.stream(source):
            size += len(data)
            if size > most_bytes:
                raise HostFileError(errno.EFBIG, "the guest's file has more bytes than allowed")
            await run_sync(write_host, fd, data)
    finally:
        os.close(fd)
    return TreeReport(1, 0, size, ())


def write_host(fd: int, data: bytes) -> None:
    """Write all of `data` to a file of the host. Blocks."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise HostFileError(error.errno, f"a file of the guest cannot be written here: {error.strerror}") from error


async def read_host(path: Path) -> AsyncIterator[bytes]:
    """Yield the content of a file on the host."""
    fd = await run_sync(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while data := await run_sync(os.read, fd, DATA_BYTES):
            yield data
    finally:
        os.close(fd)


def _walk(top: Path) -> list[tuple[str, os.stat_result]]:
    found: list[tuple[str, os.stat_result]] = []
    pending = [""]
    while pending:
        relative = pending.pop()
        with os.scandir(top / relative) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{relative}/{entry.name}" if relative else entry.name
                found.append((name, entry.stat(follow_symlinks=False)))
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name)
    return found


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
