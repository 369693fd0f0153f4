"""Files inside the guest: one request after another to a file server there, as the user that owns it."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sandbox.errors import ConfigError, GuestFileError
from sandbox.guest.client import GuestClient
from sandbox.guest.request import Request
from sandbox.guest.server import Server, ServerGone
from sandbox.message import DATA_BYTES, Tag

READ_BYTES = 256 * 1024 * 1024
_IDLE_SERVERS = 4

FileType = Literal["file", "directory", "symlink", "fifo", "socket", "device", "other"]
Content = bytes | AsyncIterable[bytes]


class FileStat(BaseModel):
    """What the guest says about a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: FileType
    size: int
    mode: int
    """Permission bits."""
    mtime: float
    """Seconds since 1970, by the guest's clock."""
    uid: int
    gid: int
    target: str | None = None
    """Where a symbolic link points to."""


class FileEntry(FileStat):
    """A file in a directory. Bytes of its name that are no text are lone surrogates, as `os.fsdecode` gives them."""

    name: str


class Change(BaseModel):
    """What happened below a watched directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["created", "removed", "modified", "written", "attributes", "overflow"]
    """`written` is when a writer closes the file. After `overflow` changes were lost: look at everything again."""
    path: str
    """Relative to what is watched; empty for itself."""
    is_directory: bool


class Files:
    """Handles files in the guest as one user. Relative paths start at the working directory.

    A refusal raises `GuestFileError` with the guest's `errno`. Only regular files are read and written: a FIFO or a
    device, which could block or never end, is refused with `EINVAL`. Symbolic links are followed, except by `remove`,
    `move`, `list` and `stat(follow=False)`; a loop is refused with `ELOOP`. Calls run side by side.
    """

    def __init__(self, client: GuestClient, user: str | None) -> None:
        self._client = client
        self._user = user
        self._idle: list[Server] = []

    async def read(self, path: str, *, offset: int = 0, limit: int = READ_BYTES) -> bytes:
        """Return the content from `offset` on; refuse with `EFBIG` if it is more than `limit` bytes."""
        content = bytearray()
        async for data in self.stream(path, offset=offset):
            content += data
            if len(content) > limit:
                raise GuestFileError(errno.EFBIG, f"there are more than {limit} bytes; `stream` gives them all", path)
        return bytes(content)

    async def stream(self, path: str, *, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the content in pieces, as fast as they are taken."""
        async with self.server(path) as server:
            await server.ask({"op": "read", "path": path, "offset": offset})
            await answer(server, path, is_last=False)
            while (data := await piece(server)) is not None:
                yield data
            await answer(server, path)

    async def write(
        self,
        path: str,
        content: Content,
        *,
        mode: int | None = None,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = False,
    ) -> FileStat:
        """Write a file, or append to it. With `exclusive` it must not exist, with `parents` directories are made.

        If this fails half-way, the file has a part of the content. `mode` is set exactly; without it a new file gets
        0644.
        """
        request = {"op": "write", "path": path, "append": append, "exclusive": exclusive, "parents": parents}
        async with self.server(path) as server:
            await server.ask({**request, "mode": mode})
            if isinstance(content, bytes):
                await _send(server, content)
            else:
                async for data in content:
                    await _send(server, data)
            await server.send(Tag.END)
            return _stat(server, await answer(server, path))

    async def append(self, path: str, content: Content) -> FileStat:
        """Append to a file; make it if it is not there."""
        return await self.write(path, content, append=True)

    async def stat(self, path: str, *, follow: bool = True) -> FileStat:
        """Return type, size, mode, owner and time; with `follow=False` of a symbolic link itself."""
        async with self.server(path) as server:
            await server.ask({"op": "stat", "path": path, "follow": follow})
            return _stat(server, await answer(server, path))

    async def exists(self, path: str) -> bool:
        """Return whether something is there. A link that points nowhere is not."""
        return bool((await self._call(path, {"op": "exists"})).get("exists"))

    async def list(self, path: str = ".") -> list[FileEntry]:
        """Return what is in a directory, in no order; links are not followed."""
        entries: list[FileEntry] = []
        async with self.server(path) as server:
            await server.ask({"op": "list", "path": path})
            while (found := (await answer(server, path, is_last=False)).get("entries")) is not None:
                try:
                    entries += [FileEntry.model_validate(entry) for entry in found]
                except (TypeError, ValidationError) as error:
                    raise server.nonsense(str(error).splitlines()[0]) from error
            server.is_idle = True
        return entries

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, an empty directory, or with `recursive` a whole tree."""
        await self._call(path, {"op": "remove", "recursive": recursive})

    async def move(self, path: str, target: str, *, replace: bool = True) -> None:
        """Rename within one file system; without `replace`, refuse with `EEXIST` if the target exists."""
        _check_path(target)
        await self._call(path, {"op": "move", "target": target, "replace": replace})

    async def mkdir(self, path: str, *, parents: bool = False, mode: int | None = None) -> None:
        """Make a directory; with `parents` also those above, and no complaint if it exists."""
        await self._call(path, {"op": "mkdir", "parents": parents, "mode": mode})

    async def chmod(self, path: str, mode: int) -> None:
        """Set the permission bits."""
        await self._call(path, {"op": "chmod", "mode": mode})

    @asynccontextmanager
    async def watch(self, path: str = ".", *, recursive: bool = False) -> AsyncIterator[AsyncIterator[Change]]:
        """Watch a directory or file for the length of the context; changes from its beginning on are not missed."""
        _check_path(path)
        server = self._start("watch")
        try:
            try:
                await server.ask({"path": path, "recursive": recursive})
                await answer(server, path)
            except ServerGone:
                raise await _why_gone(server, path) from None
            yield _changes(server, path)
        finally:
            server.close()

    def _start(self, op: str) -> Server:
        return Server(self._client, Request(op, {}, user=self._user, is_server=True, keep_bytes=4096))

    @asynccontextmanager
    async def server(self, path: str) -> AsyncIterator[Server]:
        """Lend a file server. One whose request did not come to its end is not used again."""
        _check_path(path)
        self._idle = [server for server in self._idle if server.is_alive]
        server = self._idle.pop() if self._idle else self._start("files")
        server.is_idle = False
        try:
            yield server
        except ServerGone:
            raise await _why_gone(server, path) from None
        finally:
            if server.is_idle and server.is_alive and len(self._idle) < _IDLE_SERVERS:
                self._idle.append(server)
            else:
                server.close()

    async def _call(self, path: str, request: Mapping[str, object]) -> dict[str, Any]:
        async with self.server(path) as server:
            await server.ask({**request, "path": path})
            return await answer(server, path)


async def answer(server: Server, path: str, *, is_last: bool = True) -> dict[str, Any]:
    """Return an answer's fields; raise the refusal if it is one."""
    fields = await server.receive_json()
    server.is_idle = is_last or "errno" in fields
    if "errno" in fields:
        number, text = fields["errno"], fields.get("text")
        if not isinstance(number, int) or not isinstance(text, str):
            raise server.nonsense("an error without number and text")
        raise GuestFileError(number, text[:1000], path)
    return fields


async def piece(server: Server) -> bytes | None:
    """Return the next piece of content, or None at its end."""
    tag, body = await server.receive()
    if tag is Tag.JSON:
        raise server.nonsense("JSON within content")
    return body if tag is Tag.DATA else None


async def _send(server: Server, data: bytes) -> None:
    for start in range(0, len(data), DATA_BYTES):
        await server.send(Tag.DATA, data[start : start + DATA_BYTES])


def _stat(server: Server, fields: Mapping[str, Any]) -> FileStat:
    try:
        return FileStat.model_validate(fields.get("stat"))
    except ValidationError as error:
        raise server.nonsense(str(error).splitlines()[0]) from error


async def _changes(server: Server, path: str) -> AsyncIterator[Change]:
    while True:
        try:
            fields = await server.receive_json()
            changes = [Change.model_validate(change) for change in fields.get("events", ())]
        except (TypeError, ValidationError) as error:
            raise server.nonsense(str(error).splitlines()[0]) from error
        except ServerGone:
            raise await _why_gone(server, path) from None
        for change in changes:
            yield change


async def _why_gone(server: Server, path: str) -> GuestFileError:
    """Return what to raise when a file server has ended; raise `GuestLost` if it is because the VM has."""
    result = await server.execution.wait()
    said = result.stderr.decode("utf-8", "replace").strip()[-500:]
    return GuestFileError(errno.EIO, f"the guest's file server ended ({said or result.describe()})", path)


def _check_path(path: str) -> None:
    if not path or "\0" in path:
        raise ConfigError(f"the path {path!r} is empty or holds a NUL byte, which no file can be named")
