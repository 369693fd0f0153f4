"""Files of this host as ends of a copy: read in pieces without following surprises, made whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

from sandbox.errors import ConfigError, HostFileError
from sandbox.guest.blocking import in_thread
from sandbox.message import DATA_BYTES

_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def stat_host(path: Path) -> os.stat_result:
    """Return what a path that the caller gave leads to. Blocks."""
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {path} on this host") from error
    except OSError as error:
        raise refusal(error, f"{path} cannot be looked at") from error


async def read_host(path: Path) -> AsyncGenerator[bytes, None]:
    """Yield the content of a regular file."""
    fd = await in_thread(_open, path, drop=os.close)
    try:
        while data := await in_thread(os.read, fd, DATA_BYTES):
            yield data
    except OSError as error:
        raise refusal(error, f"{path} cannot be read") from error
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise refusal(error, f"{path} cannot be read") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise HostFileError(errno.EINVAL, f"{path} is no regular file any more")
    return fd


class NewFile:
    """A file that is being written in an open directory: whole when it is finished, gone when it is abandoned.

    With `replace`, a regular file or a link of that name is replaced at the end, by a rename: nothing is ever written
    through a link or into a file that has another name, too. Blocks.
    """

    def __init__(self, directory: int, name: str, mode: int, *, replace: bool) -> None:
        if replace:
            check_replaceable(directory, name)
        self._directory, self._name = directory, name
        self._present = temporary_name() if replace else name
        self._fd = os.open(self._present, _MAKE, mode & 0o777 | 0o400, dir_fd=directory)

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def finish(self, mtime_ns: int) -> None:
        os.utime(self._fd, ns=(mtime_ns, mtime_ns))
        self._close()
        if self._present != self._name:
            put_in_place(self._directory, self._present, self._name)

    def abandon(self) -> None:
        """Remove it, also after `finish` has failed."""
        self._close()
        with suppress(FileNotFoundError):
            os.unlink(self._present, dir_fd=self._directory)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)  # some file systems tell only now that there was no room


def temporary_name() -> str:
    """Return a name for something that is not yet in its place."""
    return f".sandbox-{secrets.token_hex(8)}"


def check_replaceable(directory: int, name: str) -> None:
    """Raise `FileExistsError` if what has this name is neither a regular file nor a link."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(found) or stat.S_ISLNK(found)):
        raise FileExistsError(errno.EEXIST, "something is in its place that is neither a file nor a link")


def put_in_place(directory: int, temporary: str, name: str) -> None:
    """Rename within a directory; what had the name is gone, and nothing is followed."""
    check_replaceable(directory, name)
    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def check_room(directory: int, size: int, name: str) -> None:
    """Raise `HostFileError` if a file of this size does not fit into the file system of an open directory."""
    found = os.fstatvfs(directory)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and size > free:
        raise HostFileError(errno.ENOSPC, f"{name!r} has {size} bytes, and only {free} are free on this host")


def refusal(error: OSError, what: str, advice: str = "") -> HostFileError:
    """Return the error of this host as ours."""
    return HostFileError(error.errno, f"{what}: {error.strerror}{advice}")
