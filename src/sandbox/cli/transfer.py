"""Files and directories into the VM before a run, and out of it afterwards."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from anyio import fail_after

from sandbox.cli.streams import pass_on
from sandbox.errors import ConfigError, GuestFileError, HostFileError
from sandbox.guest.tree import TreeReport
from sandbox.vm import VM

EXCLUDED = (
    *(".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "*.pyc"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".tox", ".nox", ".DS_Store"),
)
"""What a project has that a run of it does not need."""
_STANDARD_OUTPUT = "-"
_MIB = 1024 * 1024
_SIZE = re.compile(r"^(\d+)\s*([kmgt]?)(?:i?b)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Transfer:
    """One `--put` or `--get`."""

    source: str
    target: str
    exclude: tuple[str, ...] = ()

    @property
    def is_printed(self) -> bool:
        """Whether it goes to our standard output."""
        return self.target == _STANDARD_OUTPUT


@dataclass(frozen=True)
class Bounds:
    """What each copy may take, and whether it may change a directory that is there."""

    bytes: int
    seconds: float
    force: bool


def parse_put(text: str) -> Transfer:
    """Read `HOST[:GUEST]`; without a guest path the name stays, and a guest path that ends with / is a directory.

    `HOST/.` is what the directory holds, without a directory around it. What names a file here as a whole is its name,
    colons and all.
    """
    host, _, guest = (text, "", "") if _is_there(text) else text.partition(":")
    if not host:
        raise ConfigError(f"--put {text!r} names no file of this host; write HOST or HOST:GUEST")
    mode = _mode(f"--put {host}", Path(host))
    if mode is None:
        raise ConfigError(f"--put {host}: there is no such file or directory on this host")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ConfigError(f"--put {host}: only files and directories can be copied, and this is neither")
    if not guest and (host == "." or host.endswith("/.")):
        return Transfer(host, ".")
    name = Path(host).resolve().name
    return Transfer(host, guest + name if guest.endswith("/") else guest or name)


def parse_get(text: str, *, force: bool = False) -> Transfer:
    """Read `GUEST[:HOST]`; without a host path the name stays, in the current directory.

    With `force`, the target may be a directory. The target `-` is our standard output.
    """
    guest, _, host = text.partition(":")
    name = PurePosixPath(guest).name
    if not name or name == "..":
        raise ConfigError(f"--get {text!r} names no file of the guest; write GUEST or GUEST:HOST")
    if host == _STANDARD_OUTPUT:
        return Transfer(guest, host)
    target = Path(host or name)
    mode = _mode(f"--get {text}", target)
    if mode is not None and stat.S_ISDIR(mode):
        if not force:
            raise ConfigError(
                f"--get {text}: {target} is a directory; name another target, or merge into it with --force"
            )
    elif mode is not None and not stat.S_ISREG(mode):  # a device above all: a name in /dev is not to be replaced
        raise ConfigError(f"--get {text}: {target} is no regular file and would not be replaced; name another target")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"--get {text}: there is no directory {target.absolute().parent}; make it first")
    return Transfer(guest, str(target))


def project_put(directory: Path | None, exclude: Sequence[str] | None) -> list[Transfer]:
    """Return what `--project DIR` copies: all that the directory holds but `exclude`, `EXCLUDED` by default."""
    if directory is None:
        return []
    mode = _mode(f"--project {directory}", directory)
    if mode is None or not stat.S_ISDIR(mode):
        raise ConfigError(f"--project {directory}: there is no such directory on this host")
    return [Transfer(str(directory), ".", EXCLUDED if exclude is None else tuple(exclude))]


def check_room(transfers: Iterable[Transfer], memory_mib: int) -> None:
    """Raise `ConfigError` if the guest's disk, at most half of its memory, cannot hold what is to be copied in."""
    size = sum(_size(transfer) for transfer in transfers)
    if 2 * size > memory_mib * _MIB:
        enough = -(-5 * size // (2 * 64 * _MIB)) * 64  # with a fifth for the kernel, in steps of 64 MiB
        raise ConfigError(
            f"{size / _MIB:.0f} MiB are to be copied in, and the guest's disk is half of its memory, "
            f"{memory_mib} MiB: give --memory {enough}"
        )


def _size(transfer: Transfer) -> int:
    top = Path(transfer.source)
    if not top.is_dir():
        return _bytes_of(top)
    size = 0
    for directory, directories, files in os.walk(top):
        place = PurePosixPath(os.path.relpath(directory, top))
        directories[:] = [name for name in directories if not _is_excluded(place / name, transfer.exclude)]
        kept = (name for name in files if not _is_excluded(place / name, transfer.exclude))
        size += sum(_bytes_of(Path(directory, name)) for name in kept)
    return size


def _is_excluded(path: PurePosixPath, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(str(path), pattern) or fnmatchcase(path.name, pattern) for pattern in patterns)


def _bytes_of(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError:  # the copy will tell
        return 0
    return min(found.st_size, found.st_blocks * 512) if stat.S_ISREG(found.st_mode) else 0


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # nothing that can be reached by this name, so the name may end before a colon
        return False


def _mode(option: str, path: Path) -> int | None:
    """Return a mode that has the kind of file; None if there is none. Raises `ConfigError` where we may not look."""
    try:
        return path.stat().st_mode if path.exists() else None
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be looked at: {error.strerror}") from None


async def put(vm: VM, transfer: Transfer, bounds: Bounds, *, cwd: str | None, user: str | None) -> Mapping[str, str]:
    """Copy a file or a directory of this host into the guest; return what was left out, with the reasons.

    A file that cannot be read or made is an error: the script would run on a part of what it was given.
    """
    target = posixpath.join(cwd or "", transfer.target)
    try:
        report = await vm.upload(
            transfer.source, target, user=user, exclude=transfer.exclude, strict=True, timeout=bounds.seconds
        )
    except GuestFileError as error:
        said = f"--put {transfer.source}: the guest refused {target}: {error.strerror}"
        raise GuestFileError(error.errno, said) from error
    except HostFileError as error:
        raise HostFileError(error.errno, f"--put {transfer.source}: {error.strerror}") from error
    return report.skipped


async def get(vm: VM, transfer: Transfer, bounds: Bounds, *, cwd: str | None, user: str | None) -> TreeReport | None:
    """Copy a directory of the guest to a new one here, or a file, which replaces one of that name when it is whole.

    With `--force` an existing directory is merged. A file that is printed has no report.
    """
    source = posixpath.join(cwd or "", transfer.source)
    try:
        if transfer.is_printed:
            with fail_after(bounds.seconds):
                async with aclosing(vm.files_of(user).stream(source, limit=bounds.bytes)) as content:
                    async for data in content:
                        await pass_on("stdout", data)
            return None
        is_file = (await vm.files_of(user).stat(source)).type == "file"
        return await vm.download(
            source,
            transfer.target,
            user=user,
            overwrite=is_file or bounds.force,
            max_bytes=bounds.bytes,
            timeout=bounds.seconds,
        )
    except TimeoutError:
        said = f"--get {transfer.source}: it took more than {bounds.seconds:g} s; --transfer-timeout gives it more"
        raise GuestFileError(errno.ETIMEDOUT, said) from None
    except GuestFileError as error:
        said = f"--get {transfer.source}: the guest refused it: {error.strerror}"
        raise GuestFileError(error.errno, said) from error
    except HostFileError as error:
        raise HostFileError(error.errno, f"--get {transfer.source}: {error.strerror}") from error


def size_bytes(option: str, text: str) -> int:
    """Read a number of bytes such as 500000, 100K, 64M or 2G."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ConfigError(f"{option} {text!r} is not a size; write for example 500000 (bytes), 100K, 64M or 2G")
    return int(match[1]) << 10 * (" kmgt".index(match[2].lower()) if match[2] else 0)
