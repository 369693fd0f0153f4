"""Files inside the guest: one request after another to a file server there, as the user that owns it."""

from __future__ import annotations

import errno
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from sandbox import arguments
from sandbox.arguments import GuestPath
from sandbox.errors import GuestFileError
from sandbox.guest.answers import FILE, FILES, Bound
from sandbox.guest.client import GuestClient
from sandbox.guest.entry import Change, FileEntry, FileStat
from sandbox.guest.fileserver import (
    Content,
    FileServers,
    answer,
    checked,
    patience,
    piece,
    send_content,
    why_gone,
)
from sandbox.guest.server import Server, ServerGone
from sandbox.handle import Handle

READ_BYTES = 64 * 1024 * 1024
LIST_ENTRIES = 100_000
LIST_CHARACTERS = 32 * 1024 * 1024
"""The names in a directory and the targets of its links may have so many in all: enough for the longest names."""
_NAME_CHARACTERS = 255
_AT_A_STRETCH = 256
"""After so many pieces that were there already, others have their turn in the event loop."""


class Files(Handle):
    """Handles files in the guest as one user. Relative paths start at the working directory.

    A refusal raises `GuestFileError` with the guest's `errno`. Only regular files are read and written: a FIFO or a
    device, which could block or never end, is refused with `EINVAL`. Symbolic links are followed, except by `remove`,
    `move`, `list` and `stat(follow=False)`; a loop is refused with `ELOOP`. Calls run side by side.
    One for which the guest does nothing for two minutes ends with `ETIMEDOUT`.
    """

    def __init__(self, client: GuestClient, user: str | None) -> None:
        self.servers = FileServers(client, user)

    async def read(
        self, path: GuestPath, *, offset: int = 0, limit: int = READ_BYTES, timeout: float | None = None
    ) -> bytes:
        """Return the content from `offset` on.

        Refuse with `EFBIG` if it is more than `limit` bytes (64 MiB by default), and with `ETIMEDOUT` if it takes more
        than `timeout` seconds. The memory that this takes is an eighth more than the content, at most.
        """
        where, most = arguments.path("path", path), arguments.count("limit", limit)
        begin = arguments.count("offset", offset)
        content = io.BytesIO()  # gives away what it has grown: a bytearray would have to be copied
        with within(timeout, where):
            async with (
                self.servers.lend_briefly(where) as server,
                aclosing(_content(server, where, begin, most + 1)) as data,
            ):
                async for found in data:
                    content.write(found)
                    if content.tell() > most + 1:
                        raise server.nonsense("more content than was asked for")
        if content.tell() > most:
            raise GuestFileError(errno.EFBIG, f"there are more than {most} bytes; `stream` gives them all", where)
        return content.getvalue()

    def stream(self, path: GuestPath, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the content in pieces, as fast as they are taken.

        A guest can go on for ever. With a `limit`, more bytes are refused with `EFBIG`, after those within it.
        """
        most = arguments.given(arguments.count, "limit", limit)
        return self._stream(arguments.path("path", path), arguments.count("offset", offset), most)

    async def _stream(self, path: str, offset: int, limit: int | None) -> AsyncGenerator[bytes, None]:
        left = limit
        async with self.servers.lend(path) as server, aclosing(_content(server, path, offset, None)) as content:
            async for data in content:
                if left is not None:
                    if len(data) > left:
                        if left:
                            yield data[:left]
                        raise GuestFileError(errno.EFBIG, f"there are more than {limit} bytes", path)
                    left -= len(data)
                yield data

    async def write(
        self,
        path: GuestPath,
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
        where, given = arguments.path("path", path), arguments.content("content", content)
        flags = {"append": append, "exclusive": exclusive, "parents": parents}
        request = {"op": "write", "path": where, **{name: arguments.flag(name, flag) for name, flag in flags.items()}}
        request["mode"] = arguments.given(arguments.mode, "mode", mode)
        lend = self.servers.lend_briefly if isinstance(given, bytes) else self.servers.lend
        async with lend(where) as server:
            await ask(server, request)
            await send_content(server, given)
            return checked(server, FileStat, [(await answer(server, where)).get("stat")])[0]

    async def append(self, path: GuestPath, content: Content) -> FileStat:
        """Append to a file; make it if it is not there."""
        return await self.write(path, content, append=True)

    async def stat(self, path: GuestPath, *, follow: bool = True) -> FileStat:
        """Return type, size, mode, owner and time; with `follow=False` of a symbolic link itself."""
        where, follows = arguments.path("path", path), arguments.flag("follow", follow)
        async with self.servers.lend_briefly(where) as server:
            await ask(server, {"op": "stat", "path": where, "follow": follows})
            return checked(server, FileStat, [(await answer(server, where)).get("stat")])[0]

    async def exists(self, path: GuestPath) -> bool:
        """Return whether something is there. A link that points nowhere is not."""
        return bool((await self._call(path, {"op": "exists"})).get("exists"))

    async def list(
        self, path: GuestPath = ".", *, limit: int = LIST_ENTRIES, timeout: float | None = None
    ) -> list[FileEntry]:
        """Return what is in a directory, in no order; links are not followed.

        Refuse with `EFBIG` beyond `limit` entries, or when names and links have more than `LIST_CHARACTERS` in all;
        with `ETIMEDOUT` if it takes more than `timeout` seconds.
        """
        where, most = arguments.path("path", path), arguments.count("limit", limit)
        with within(timeout, where):
            return await _listed(self.servers, where, most)

    async def remove(self, path: GuestPath, *, recursive: bool = False) -> None:
        """Remove a file, an empty directory, or with `recursive` a whole tree."""
        await self._call(path, {"op": "remove", "recursive": arguments.flag("recursive", recursive)})

    async def move(self, path: GuestPath, target: GuestPath, *, replace: bool = True) -> None:
        """Rename within one file system; without `replace`, refuse with `EEXIST` if the target exists."""
        there = arguments.path("target", target)
        await self._call(path, {"op": "move", "target": there, "replace": arguments.flag("replace", replace)})

    async def mkdir(self, path: GuestPath, *, parents: bool = False, mode: int | None = None) -> None:
        """Make a directory; with `parents` also those above, and no complaint if it exists."""
        permissions = arguments.given(arguments.mode, "mode", mode)
        await self._call(path, {"op": "mkdir", "parents": arguments.flag("parents", parents), "mode": permissions})

    async def chmod(self, path: GuestPath, mode: int) -> None:
        """Set the permission bits."""
        await self._call(path, {"op": "chmod", "mode": arguments.mode("mode", mode)})

    @asynccontextmanager
    async def watch(self, path: GuestPath = ".", *, recursive: bool = False) -> AsyncIterator[AsyncIterator[Change]]:
        """Watch a directory or file for the length of the context; changes from its beginning on are not missed.

        With `recursive` all directories below are watched, and those that come; what was in one when it came may be
        reported twice. Directories that the user may not look into are left out.
        """
        where, is_deep = arguments.path("path", path), arguments.flag("recursive", recursive)
        server = self.servers.start("watch")
        try:
            try:
                await ask(server, {"path": where, "recursive": is_deep}, FILES)
                await answer(server, where)
            except ServerGone:
                raise await why_gone(server, where) from None
            yield _changes(server, where)
        finally:
            server.close()

    async def _call(self, path: GuestPath, request: Mapping[str, object]) -> dict[str, Any]:
        """Return the answer to a request that has one."""
        where = arguments.path("path", path)
        async with self.servers.lend_briefly(where) as server:
            await ask(server, {**request, "path": where})
            return await answer(server, where)


@contextmanager
def within(seconds: float | None, path: str) -> Iterator[None]:
    """Raise `GuestFileError` with `ETIMEDOUT` if what is done here takes longer."""
    with anyio.move_on_after(arguments.given(arguments.seconds, "timeout", seconds)) as scope:
        yield
    if scope.cancelled_caught:
        raise GuestFileError(errno.ETIMEDOUT, f"it took longer than {seconds:g} s", path)


async def ask(server: Server, fields: Mapping[str, object], bound: Bound = FILE) -> None:
    """Send a request, and take answers up to this bound; raise `ServerGone` if the guest has no room for too long."""
    server.expect(bound)
    with patience(server):
        await server.ask(fields)


async def next_piece(server: Server, path: str) -> bytes | None:
    """Return the next piece of content, which has at least a byte, or None at its end."""
    data = await piece(server, path)
    if data == b"":
        raise server.nonsense("an empty piece of content")
    return data


async def _content(server: Server, path: str, offset: int, limit: int | None) -> AsyncGenerator[bytes, None]:
    request = {"op": "read", "path": path, "offset": offset}
    await ask(server, request if limit is None else {**request, "limit": limit})
    await answer(server, path, is_last=False)
    taken = 0
    while (data := await next_piece(server, path)) is not None:
        yield data
        taken += 1
        if taken % _AT_A_STRETCH == 0:
            await checkpoint()
    await answer(server, path)


async def _listed(servers: FileServers, path: str, limit: int) -> list[FileEntry]:
    entries: list[FileEntry] = []
    characters, was_empty = 0, False
    async with servers.lend_briefly(path) as server:
        await ask(server, {"op": "list", "path": path}, FILES)
        while (found := (await answer(server, path, is_last=False)).get("entries")) is not None:
            more = _entries(server, found)
            if was_empty and not more:
                raise server.nonsense("no entries, again and again")
            was_empty = not more
            entries += more
            if len(entries) > limit:
                raise GuestFileError(errno.EFBIG, f"the directory has more than {limit} entries", path)
            characters += sum(len(entry.name) + len(entry.target or "") for entry in more)
            if characters > LIST_CHARACTERS:
                said = f"names and links in the directory have more than {LIST_CHARACTERS} characters"
                raise GuestFileError(errno.EFBIG, said, path)
            await checkpoint()
        server.is_idle = True
    return entries


def _entries(server: Server, found: object) -> list[FileEntry]:
    entries = checked(server, FileEntry, found)
    if any(len(entry.name) > _NAME_CHARACTERS for entry in entries):
        raise server.nonsense("a name that is longer than a name can be")
    return entries


async def _changes(server: Server, path: str) -> AsyncIterator[Change]:
    while True:
        try:
            changes = checked(server, Change, (await server.receive_json()).get("events"))
        except ServerGone:
            raise await why_gone(server, path) from None
        for change in changes:
            yield change
        await checkpoint()
