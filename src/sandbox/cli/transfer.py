"""Files and directories into the VM before a run, and out of it afterwards."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anyio.to_thread import run_sync

from sandbox.errors import ConfigError, GuestFileError, HostFileError, SandboxError
from sandbox.guest.hostfile import write_host
from sandbox.vm import VM


@dataclass(frozen=True)
class Transfer:
    """One `--put` or `--get`."""

    source: str
    target: str


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


def parse_get(text: str) -> Transfer:
    """Read `GUEST[:HOST]`; without a host path the name stays, in the current directory."""
    guest, _, host = text.partition(":")
    name = PurePosixPath(guest).name
    if not name or name == "..":
        raise ConfigError(f"--get {text!r} names no file of the guest; write GUEST or GUEST:HOST")
    target = Path(host or name)
    mode = _mode(f"--get {text}", target)
    if mode is not None and stat.S_ISDIR(mode):
        raise ConfigError(f"--get {text}: {target} is a directory and would not be replaced; name another target")
    if mode is not None and not stat.S_ISREG(mode):  # a device above all: a name in /dev is not to be replaced
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


async def put(vm: VM, transfer: Transfer, *, cwd: str | None, user: str | None) -> tuple[str, ...]:
    """Copy a file or a directory of this host into the guest; return the names of what was left out."""
    target = posixpath.join(cwd or "", transfer.target)
    try:
        return (await vm.upload(transfer.source, target, user=user)).skipped
    except GuestFileError as error:
        said = f"--put {transfer.source}: the guest refused {target}: {error.strerror}"
        raise GuestFileError(error.errno, said) from error
    except SandboxError:
        raise
    except OSError as error:
        raise HostFileError(error.errno, f"--put {transfer.source} cannot be read: {error.strerror}") from error


async def get(vm: VM, transfer: Transfer, *, cwd: str | None, user: str | None) -> tuple[str, ...]:
    """Copy a directory of the guest to a new one here, or a file, which replaces one of that name when it is whole.

    Return the names of what was left out.
    """
    source, target = posixpath.join(cwd or "", transfer.source), Path(transfer.target)
    try:
        if (await vm.files_of(user).stat(source)).type == "directory":
            return (await vm.download(source, target, user=user)).skipped
        await _get_file(vm, source, target, user)
    except GuestFileError as error:
        said = f"--get {transfer.source}: the guest refused it: {error.strerror}"
        raise GuestFileError(error.errno, said) from error
    except SandboxError:
        raise
    except OSError as error:
        raise HostFileError(error.errno, f"--get {transfer.source}: cannot write {target}: {error.strerror}") from error
    return ()


async def _get_file(vm: VM, source: str, target: Path, user: str | None) -> None:
    descriptor, name = await run_sync(lambda: tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}."))
    try:
        try:
            async for data in vm.files_of(user).stream(source):
                await run_sync(write_host, descriptor, data)
        finally:
            os.close(descriptor)
        await run_sync(_publish, name, target)
    except BaseException:
        os.unlink(name)  # noqa: PTH108 - at once, also when cancelled
        raise


def _publish(name: str, target: Path) -> None:
    if os.path.lexists(target) and not target.is_file():  # it came while the script ran
        raise OSError(errno.EEXIST, "there is something else than a regular file")
    umask = os.umask(0)
    os.umask(umask)
    Path(name).chmod(0o666 & ~umask)
    Path(name).replace(target)
