"""Files and whole directories between host and guest."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from anyio.to_thread import run_sync

from sandbox import arguments
from sandbox.errors import ConfigError, GuestFileError, HostFileError
from sandbox.guest.answers import FILES, TREE
from sandbox.guest.blocking import in_thread
from sandbox.guest.entry import FileStat, TreeEntry, TreeError, Unpacked
from sandbox.guest.files import Files, ask, next_piece, within
from sandbox.guest.fileserver import answer, checked, patience
from sandbox.guest.hostfile import NewFile, check_room, read_host, refusal, stat_host
from sandbox.guest.server import Server, ServerGone
from sandbox.guest.tree import MOST_BYTES, MOST_ENTRIES, TreeReport, TreeWriter
from sandbox.guest.treereader import Batch, Large, Links, TreeReader
from sandbox.message import DATA_BYTES, Tag

_MOST_AT_ONCE = 1000
"""An honest guest sends fewer entries in one message: to check them must not hold up the event loop."""
_REASON_CHARACTERS = 200
_TIMES = 1 << 33
"""Seconds since 1970 that every file system of the host can hold."""


async def download(
    files: Files,
    source: str,
    target: Path,
    *,
    overwrite: bool = False,
    links: Literal["keep", "skip"] = "keep",
    strict: bool = False,
    max_bytes: int = MOST_BYTES,
    max_entries: int = MOST_ENTRIES,
    timeout: float | None = None,
) -> TreeReport:
    """Copy a file or a directory of the guest; see `Sandbox.download`."""
    arguments.choice("links", links, ("keep", "skip"))
    max_bytes, max_entries = arguments.count("max_bytes", max_bytes), arguments.count("max_entries", max_entries)
    for name, value in (("overwrite", overwrite), ("strict", strict)):
        arguments.flag(name, value)
    with within(timeout, source):
        found = await files.stat(source)
        if found.type == "file":
            return await _download_file(files, source, target, found, max_bytes, overwrite=overwrite)
        if found.type != "directory":
            raise GuestFileError(errno.EINVAL, f"it is a {found.type}, neither a file nor a directory", source)

        def make() -> TreeWriter:
            return TreeWriter(
                target,
                max_bytes,
                max_entries,
                overwrite=overwrite,
                keep_links=links == "keep",
                strict=strict,
                mode=found.mode & 0o777,
            )

        writer = await in_thread(make, drop=TreeWriter.close)
        try:
            async with files.servers.lend(source) as server:
                await ask(server, {"op": "pack", "path": source}, FILES)
                await _take_tree(server, writer, source, strict=strict)
                server.is_idle = True
        finally:
            await in_thread(writer.close)
        return writer.report()


async def upload(
    files: Files,
    source: Path,
    target: str,
    *,
    overwrite: bool = True,
    links: Links = "keep",
    exclude: Sequence[str] = (),
    strict: bool = False,
    timeout: float | None = None,
) -> TreeReport:
    """Copy a file or a directory of the host; see `Sandbox.upload`."""
    arguments.choice("links", links, ("keep", "follow", "skip"))
    exclude = arguments.words("exclude", exclude)
    for name, value in (("overwrite", overwrite), ("strict", strict)):
        arguments.flag(name, value)
    with within(timeout, target):
        status = await run_sync(stat_host, source)
        mode = stat.S_IMODE(status.st_mode) & 0o777
        if stat.S_ISREG(status.st_mode):
            async with aclosing(read_host(source)) as content:
                written = await files.write(target, content, mode=mode, parents=True, exclusive=not overwrite)
            return TreeReport(1, 0, written.size)
        if not stat.S_ISDIR(status.st_mode):
            raise ConfigError(f"{source} is no file and no directory on this host")

        def make() -> TreeReader:
            return TreeReader(source, links=links, exclude=exclude, strict=strict)

        reader = await in_thread(make, drop=TreeReader.close)
        try:
            request = {"op": "unpack", "path": target, "overwrite": overwrite, "strict": strict, "mode": mode | 0o700}
            async with files.servers.lend(target) as server:
                await ask(server, request, TREE)
                while not server.has_answered and (part := await in_thread(reader.next)) is not None:
                    await _send_part(server, part, reader)
                await ask(server, {"done": True}, TREE)
                made = checked(server, Unpacked, [await answer(server, target)])[0]
        finally:
            await in_thread(reader.close)
    for error in made.errors:
        reader.omissions.fail(error.name, error.text[:_REASON_CHARACTERS])
    skipped, errors = reader.omissions.skipped, reader.omissions.errors
    return TreeReport(made.files, made.directories, made.bytes, made.links, skipped, errors)


async def _take_tree(server: Server, writer: TreeWriter, source: str, *, strict: bool) -> None:
    """Take what `pack` sends, a message with its contents at a time; no other call of a thread is made for a file."""
    while "done" not in (fields := await answer(server, source, is_last=False)):
        if "entry" in fields:
            await _take_large(server, writer, source, fields["entry"], strict=strict)
            continue
        entries = _some(server, TreeEntry, fields.get("entries"))
        errors = _some(server, TreeError, fields.get("errors"))
        if not entries and not errors:
            raise server.nonsense("a message without entries")
        sizes = [entry.size for entry in entries if entry.type == "file"]
        if any(size < 0 for size in sizes) or sum(sizes) > DATA_BYTES:
            raise server.nonsense("more content than fits into a message")
        content = (await next_piece(server, source) or b"") if sum(sizes) else b""
        if len(content) != sum(sizes):
            raise server.nonsense("content of another size than its entries")
        await in_thread(writer.take, entries, content)
        for error in errors:
            _fail(writer, source, error, strict=strict)


async def _take_large(server: Server, writer: TreeWriter, source: str, found: Any, *, strict: bool) -> None:
    entry = checked(server, TreeEntry, [found])[0]
    if entry.type != "file":
        raise server.nonsense(f"the content of a {entry.type}")
    await in_thread(writer.begin, entry)
    while (data := await next_piece(server, source)) is not None:
        await in_thread(writer.write, data)
    failure = (await answer(server, source, is_last=False)).get("error")
    if failure is None:
        await in_thread(writer.end)
        return
    error = checked(server, TreeError, [failure])[0]
    if strict:
        raise _refused(source, error)
    await in_thread(writer.end, error.text[:_REASON_CHARACTERS])


def _some(server: Server, model: type[Any], found: object) -> list[Any]:
    if isinstance(found, list) and len(found) > _MOST_AT_ONCE:
        raise server.nonsense(f"more than {_MOST_AT_ONCE} entries at once")
    return checked(server, model, found)


def _fail(writer: TreeWriter, source: str, error: TreeError, *, strict: bool) -> None:
    if strict:
        raise _refused(source, error)
    writer.fail(error.name, error.text[:_REASON_CHARACTERS])


def _refused(source: str, error: TreeError) -> GuestFileError:
    return GuestFileError(error.errno, error.text[:_REASON_CHARACTERS], f"{source}/{error.name}")


async def _send_part(server: Server, part: Batch | Large, reader: TreeReader) -> None:
    if not server.is_alive:
        raise ServerGone
    if isinstance(part, Batch):
        await ask(server, {"entries": part.entries})
        if part.size:
            await _send(server, Tag.DATA, b"".join(part.contents))
        return
    await ask(server, {"entry": part.entry})
    failure = None
    try:
        while not server.has_answered and (data := await in_thread(os.read, part.fd, DATA_BYTES)):
            if not server.is_alive:
                raise ServerGone
            await _send(server, Tag.DATA, data)
    except OSError as error:
        failure = error.strerror or str(error)
        reader.fail(str(part.entry["name"]), error)
    await _send(server, Tag.END)
    await ask(server, {"error": failure})


async def _send(server: Server, tag: Tag, body: bytes = b"") -> None:
    with patience(server):
        await server.send(tag, body)


async def _download_file(
    files: Files, source: str, target: Path, found: FileStat, max_bytes: int, *, overwrite: bool
) -> TreeReport:
    """Write a file beside its place and rename it, or make it; if that fails, nothing of it is left."""
    if found.size > max_bytes:
        raise _too_large(source, max_bytes)
    directory = await in_thread(_open_directory, target.parent, drop=os.close)
    try:
        check_room(directory, found.size, source)
        file = await in_thread(_make, directory, target, found.mode, overwrite, drop=NewFile.abandon)
        try:
            report = TreeReport(1, 0, await _fill(files, source, file, max_bytes))
            await in_thread(file.finish, int(found.mtime * 1e9) if abs(found.mtime) < _TIMES else 0)
        except BaseException:
            await in_thread(file.abandon)
            raise
    except (GuestFileError, HostFileError):
        raise
    except OSError as error:
        raise refusal(error, f"{target} cannot be written") from error
    finally:
        os.close(directory)
    return report


async def _fill(files: Files, source: str, file: NewFile, max_bytes: int) -> int:
    size = 0
    async with aclosing(files.stream(source)) as content:
        async for data in content:
            size += len(data)
            if size > max_bytes:
                raise _too_large(source, max_bytes)
            await in_thread(file.write, data)
    return size


def _too_large(source: str, max_bytes: int) -> HostFileError:
    return HostFileError(errno.EFBIG, f"{source!r} has more bytes than allowed (max_bytes is {max_bytes})")


def _open_directory(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise refusal(error, f"{path} cannot be written to") from error


def _make(directory: int, target: Path, mode: int, overwrite: bool) -> NewFile:
    try:
        if overwrite and target.is_symlink() and not target.is_file():
            raise FileExistsError(errno.EEXIST, "it is a link to something else than a regular file")
        return NewFile(directory, target.name, mode, replace=overwrite)
    except OSError as error:
        raise refusal(error, f"cannot make {target}", "" if overwrite else "; name a new file") from error
