"""Files and directories into the VM before a run, and out of it afterwards."""

from __future__ import annotations

import posixpath
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sandbox.errors import ConfigError, GuestFileError, HostFileError
from sandbox.guest.tree import TreeReport
from sandbox.vm import VM

_SIZE = re.compile(r"^(\d+)\s*([kmgt]?)(?:i?b)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Transfer:
    """One `--put` or `--get`."""

    source: str
    target: str


@dataclass(frozen=True)
class Bounds:
    """What each copy may take, and whether it may change a directory that is there."""

    bytes: int
    seconds: float
    force: bool


def parse_put(text: str) -> Transfer:
    """Read `HOST[:GUEST]`; without a guest path the name stays, and a guest path that ends with / is a directory.

    What names a file here as a whole is its name, colons and all.
    """
    host, _, guest = (text, "", "") if _is_there(text) else text.partition(":")
    if not host:
        raise ConfigError(f"--put {text!r} names no file of this host; write HOST or HOST:GUEST")
    mode = _mode(f"--put {host}", Path(host))
    if mode is None:
        raise ConfigError(f"--put {host}: there is no such file or directory on this host")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ConfigError(f"--put {host}: only files and directories can be copied, and this is neither")
    name = Path(host).resolve().name
    return Transfer(host, guest + name if guest.endswith("/") else guest or name)


def parse_get(text: str, *, force: bool = False) -> Transfer:
    """Read `GUEST[:HOST]`; without a host path the name stays, in the current directory.

    With `force`, the target may be a directory.
    """
    guest, _, host = text.partition(":")
    name = PurePosixPath(guest).name
    if not name or name == "..":
        raise ConfigError(f"--get {text!r} names no file of the guest; write GUEST or GUEST:HOST")
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
        report = await vm.upload(transfer.source, target, user=user, strict=True, timeout=bounds.seconds)
    except GuestFileError as error:
        said = f"--put {transfer.source}: the guest refused {target}: {error.strerror}"
        raise GuestFileError(error.errno, said) from error
    except HostFileError as error:
        raise HostFileError(error.errno, f"--put {transfer.source}: {error.strerror}") from error
    return report.skipped


async def get(vm: VM, transfer: Transfer, bounds: Bounds, *, cwd: str | None, user: str | None) -> TreeReport:
    """Copy a directory of the guest to a new one here, or a file, which replaces one of that name when it is whole.

    With `--force` an existing directory is merged.
    """
    source = posixpath.join(cwd or "", transfer.source)
    try:
        is_file = (await vm.files_of(user).stat(source)).type == "file"
        return await vm.download(
            source,
            transfer.target,
            user=user,
            overwrite=is_file or bounds.force,
            max_bytes=bounds.bytes,
            timeout=bounds.seconds,
        )
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
