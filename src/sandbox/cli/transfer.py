"""Files and directories into the VM before a run, and out of it afterwards."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anyio.to_thread import run_sync

from sandbox.errors import ConfigError
from sandbox.guest.tree import write_host
from sandbox.vm import VM


@dataclass(frozen=True)
class Transfer:
    """One `--put` or `--get`."""

    source: str
    target: str


def parse_put(text: str) -> Transfer:
    """Read `HOST[:GUEST]`; without a guest path the name stays, in the working directory."""
    host, _, guest = text.partition(":")
    if not host:
        raise ConfigError(f"--put {text!r} names no file of this host; write HOST or HOST:GUEST")
    if not Path(host).exists():
        raise ConfigError(f"--put {host}: there is no such file or directory on this host")
    return Transfer(host, guest or Path(host).resolve().name)


def parse_get(text: str) -> Transfer:
    """Read `GUEST[:HOST]`; without a host path the name stays, in the current directory."""
    guest, _, host = text.partition(":")
    name = PurePosixPath(guest).name
    if not name or name == "..":
        raise ConfigError(f"--get {text!r} names no file of the guest; write GUEST or GUEST:HOST")
    target = Path(host or name)
    if target.is_dir():
        raise ConfigError(f"--get {text}: {target} is a directory and would not be replaced; name another target")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"--get {text}: there is no directory {target.absolute().parent}; make it first")
    return Transfer(guest, str(target))


async def put(vm: VM, transfer: Transfer, *, user: str | None) -> None:
    """Copy a file or a directory of this host into the guest."""
    await vm.upload(transfer.source, transfer.target, user=user)


async def get(vm: VM, transfer: Transfer, *, user: str | None) -> None:
    """Copy a directory of the guest to a new one here, or a file, which replaces one of that name when it is whole."""
    files, target = vm.files_of(user), Path(transfer.target)
    if (await files.stat(transfer.source)).type == "directory":
        await vm.download(transfer.source, target, user=user)
        return
    descriptor, name = await run_sync(lambda: tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}."))
    try:
        try:
            async for data in files.stream(transfer.source):
                await run_sync(write_host, descriptor, data)
        finally:
            os.close(descriptor)
        await run_sync(_publish, name, target)
    except BaseException:
        os.unlink(name)  # noqa: PTH108 - at once, also when cancelled
        raise


def _publish(name: str, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    Path(name).chmod(0o666 & ~umask)
    Path(name).replace(target)
