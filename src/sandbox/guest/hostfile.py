"""Files of this host as ends of a copy: read in pieces without following surprises, made and never overwritten."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

from sandbox.errors import ConfigError, HostFileError
from sandbox.guest.blocking import in_thread
from sandbox.message import DATA_BYTES


def stat_host(path: Path) -> os.stat_result:
    """Return what a path that the caller gave leads to. Blocks."""
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {path} on this host") from error
    except OSError as error:
        raise _refusal(error, f"{path} cannot be looked at") from error


async def read_host(path: Path, *, follow: bool = True) -> AsyncGenerator[bytes, None]:
    """Yield the content of a regular file. With `follow=False` a link is refused."""
    fd = await in_thread(_open, path, follow, drop=os.close)
    try:
        while data := await in_thread(os.read, fd, DATA_BYTES):
            yield data
    except OSError as error:
        raise _refusal(error, f"{path} cannot be read") from error
    finally:
        os.close(fd)


def _open(path: Path, follow: bool) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        raise _refusal(error, f"{path} cannot be read") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise HostFileError(errno.EINVAL, f"{path} is no regular file any more")
    return fd


def make_host(path: Path, mode: int) -> int:
    """Make a file that must not exist, and return its descriptor. Blocks."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except OSError as error:
        raise _refusal(error, f"cannot make {path}", "; name a new file") from error


def write_host(fd: int, data: bytes) -> None:
    """Write all of `data` to a file. Blocks."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise _refusal(error, "a file of the guest cannot be written here") from error


def walk_host(top: Path) -> list[tuple[str, os.stat_result]]:
    """Return all that is below a directory, each directory before what is in it; links are not followed. Blocks."""
    found: list[tuple[str, os.stat_result]] = []
    pending = [""]
    try:
        while pending:
            relative = pending.pop()
            with os.scandir(top / relative) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    name = f"{relative}/{entry.name}" if relative else entry.name
                    found.append((name, entry.stat(follow_symlinks=False)))
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(name)
    except OSError as error:
        raise _refusal(error, f"{error.filename} cannot be read") from error
    return found


def _refusal(error: OSError, what: str, advice: str = "") -> HostFileError:
    return HostFileError(error.errno, f"{what}: {error.strerror}{advice}")
