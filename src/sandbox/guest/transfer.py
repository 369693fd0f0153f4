"""Files and whole directories between host and guest."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from anyio.to_thread import run_sync
from pydantic import ValidationError

from sandbox.errors import ConfigError, GuestFileError, HostFileError
from sandbox.guest.blocking import in_thread
from sandbox.guest.entry import FileEntry
from sandbox.guest.files import Files, ask, next_piece
from sandbox.guest.fileserver import answer
from sandbox.guest.hostfile import make_host, read_host, stat_host, walk_host, write_host
from sandbox.guest.said import fault
from sandbox.guest.tree import MOST_BYTES, MOST_ENTRIES, TreeReport, TreeWriter


async def download(
    files: Files, source: str, target: Path, *, most_bytes: int = MOST_BYTES, most_entries: int = MOST_ENTRIES
) -> TreeReport:
    """Copy a directory of the guest into `target`, a directory on the host that is made and must not exist.

    A single file is copied the same way: `target` is then the file.

    Regular files and directories are copied, with permission bits but without set-uid, set-gid and sticky; links and
    special files are skipped and named in the report. Raises `HostFileError` when a name leads out of the directory
    or a limit is exceeded; what was copied until then stays.
    """
    found = await files.stat(source)
    if found.type == "file":
        return await _download_file(files, source, target, found.mode, most_bytes)
    if found.type != "directory":
        raise GuestFileError(errno.EINVAL, f"it is a {found.type}, neither a file nor a directory", source)
    writer = await in_thread(TreeWriter, target, most_bytes, most_entries, drop=TreeWriter.close)
    try:
        async with files.servers.lend(source) as server:
            await ask(server, {"op": "pack", "path": source})
            while "entry" in (fields := await answer(server, source, is_last=False)):
                try:
                    entry = FileEntry.model_validate(fields["entry"])
                except ValidationError as error:
                    raise server.nonsense(fault(error)) from None
                await in_thread(writer.begin, entry)
                if entry.type == "file":
                    while (data := await next_piece(server, source)) is not None:
                        await in_thread(writer.write, data)
                    await in_thread(writer.end)
            server.is_idle = True
    finally:
        await in_thread(writer.close)
    return writer.report()


async def upload(files: Files, source: Path, target: str) -> TreeReport:
    """Copy a file or a directory of the host to `target` in the guest, with the directories above it.

    In a directory links are not followed: they and special files are skipped and named in the report. Raises
    `HostFileError` when something cannot be read here; what was copied until then stays.
    """
    status = await run_sync(stat_host, source)
    if stat.S_ISREG(status.st_mode):
        return TreeReport(1, 0, await _upload_file(files, read_host(source), target, status, parents=True), ())
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{source} is no file and no directory on this host")
    await files.mkdir(target, parents=True)
    count, directories, size, skipped = 0, 0, 0, []
    for relative, status in await run_sync(walk_host, source):
        inside = f"{target}/{relative}"
        if stat.S_ISDIR(status.st_mode):
            await files.mkdir(inside, parents=True, mode=stat.S_IMODE(status.st_mode) & 0o777 | 0o700)
            directories += 1
        elif stat.S_ISREG(status.st_mode):
            size += await _upload_file(files, read_host(source / relative, follow=False), inside, status)
            count += 1
        else:
            skipped.append(relative)
    return TreeReport(count, directories, size, tuple(skipped))


async def _upload_file(
    files: Files,
    content: AsyncGenerator[bytes, None],
    target: str,
    status: os.stat_result,
    *,
    parents: bool = False,
) -> int:
    async with aclosing(content):
        mode = stat.S_IMODE(status.st_mode) & 0o777
        return (await files.write(target, content, mode=mode, parents=parents)).size


async def _download_file(files: Files, source: str, target: Path, mode: int, most_bytes: int) -> TreeReport:
    size = 0
    fd = await in_thread(make_host, target, mode & 0o777 | 0o600, drop=os.close)
    try:
        async with aclosing(files.stream(source)) as content:
            async for data in content:
                size += len(data)
                if size > most_bytes:
                    raise HostFileError(errno.EFBIG, "the guest's file has more bytes than allowed")
                await in_thread(write_host, fd, data)
    finally:
        os.close(fd)
    return TreeReport(1, 0, size, ())
