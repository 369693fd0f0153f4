"""Files inside the guest: one request after another to a file server there, as the user that owns it."""

from __future__ import annotations

import errno
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from sandbox.errors import ConfigError, GuestFileError
from sandbox.guest.answers import FILE, FILES, Bound
from sandbox.guest.client import GuestClient
from sandbox.guest.entry import Change, FileEntry, FileStat
from sandbox.guest.fileserver import (
    Content,
    FileServers,
    answer,
    check_path,
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
_PERMISSIONS = 0o7777
_OFFSETS = 1 << 63
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

    async def read(self, path: str, *, offset: int = 0, limit: int = READ_BYTES, timeout: float | None = None) -> bytes:
        """Return the content from `offset` on.

        Refuse with `EFBIG` if it is more than `limit` bytes (64 MiB by default), and with `ETIMEDOUT` if it takes more
        than `timeout` seconds. The memory that this takes is an eighth more than the content, at most.
        """
        if limit < 0:
            raise ConfigError(f"limit is {limit}; give 0 or more")
        content = io.BytesIO()  # gives away what it has grown: a bytearray would have to be copied
        with within(timeout, path):
            async with (
                self.servers.lend_briefly(path) as server,
                aclosing(_content(server, path, offset, limit + 1)) as data,
            ):
                async for found in data:
                    content.write(found)
                    if content.tell() > limit + 1:
                        raise server.nonsense("more content than was asked for")
        if content.tell() > limit:
            raise GuestFileError(errno.EFBIG, f"there are more than {limit} bytes; `stream` gives them all", path)
        return content.getvalue()

    async def stream(self, path: str, *, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the content in pieces, as fast as they are taken.

        A guest can go on for ever. With a `limit`, more bytes are refused with `EFBIG`, after those within it.
        """
        if limit is not None and limit < 0:
            raise ConfigError(f"limit is {limit}; give 0 or more, or None")
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
        _check_mode(mode)
        request = {"op": "write", "path": path, "append": append, "exclusive": exclusive, "parents": parents}
        lend = self.servers.lend_briefly if isinstance(content, bytes) else self.servers.lend
        async with lend(path) as server:
            await ask(server, {**request, "mode": mode})
            await send_content(server, content)
            return checked(server, FileStat, [(await answer(server, path)).get("stat")])[0]

    async def append(self, path: str, content: Content) -> FileStat:
        """Append to a file; make it if it is not there."""
        return await self.write(path, content, append=True)

    async def stat(self, path: str, *, follow: bool = True) -> FileStat:
        """Return type, size, mode, owner and time; with `follow=False` of a symbolic link itself."""
        async with self.servers.lend_briefly(path) as server:
            await ask(server, {"op": "stat", "path": path, "follow": follow})
            return checked(server, FileStat, [(await answer(server, path)).get("stat")])[0]

    async def exists(self, path: str) -> bool:
        """Return whether something is there. A link that points nowhere is not."""
        return bool((await self._call(path, {"op": "exists"})).get("exists"))

    async def list(
        self, path: str = ".", *, limit: int = LIST_ENTRIES, timeout: float | None = None
    ) -> list[FileEntry]:
        """Return what is in a directory, in no order; links are not followed.

        Refuse with `EFBIG` beyond `limit` entries, or when names and links have more than `LIST_CHARACTERS` in all;
        with `ETIMEDOUT` if it takes more than `timeout` seconds.
        """
        with within(timeout, path):
            return await _listed(self.servers, path, limit)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, an empty directory, or with `recursive` a whole tree."""
        await self._call(path, {"op": "remove", "recursive": recursive})

    async def move(self, path: str, target: str, *, replace: bool = True) -> None:
        """Rename within one file system; without `replace`, refuse with `EEXIST` if the target exists."""
        check_path(target)
        await self._call(path, {"op": "move", "target": target, "replace": replace})

    async def mkdir(self, path: str, *, parents: bool = False, mode: int | None = None) -> None:
        """Make a directory; with `parents` also those above, and no complaint if it exists."""
        _check_mode(mode)
        await self._call(path, {"op": "mkdir", "parents": parents, "mode": mode})

    async def chmod(self, path: str, mode: int) -> None:
        """Set the permission bits."""
        _check_mode(mode)
        await self._call(path, {"op": "chmod", "mode": mode})

    @asynccontextmanager
    async def watch(self, path: str = ".", *, recursive: bool = False) -> AsyncIterator[AsyncIterator[Change]]:
        """Watch a directory or file for the length of the context; changes from its beginning on are not missed.

        With `recursive` all directories below are watched, and those that come; what was in one when it came may be
        reported twice. Directories that the user may not look into are left out.
        """
        check_path(path)
        server = self.servers.start("watch")
        try:
            try:
                await ask(server, {"path": path, "recursive": recursive}, FILES)
                await answer(server, path)
            except ServerGone:
                raise await why_gone(server, path) from None
            yield _changes(server, path)
        finally:
            server.close()

    async def _call(self, path: str, request: Mapping[str, object]) -> dict[str, Any]:
        """Return the answer to a request that has one."""
        async with self.servers.lend_briefly(path) as server:
            await ask(server, {**request, "path": path})
            return await answer(server, path)


@contextmanager
def within(seconds: float | None, path: str) -> Iterator[None]:
    """Raise `GuestFileError` with `ETIMEDOUT` if what is done here takes longer."""
    if seconds is None:
        yield
        return
    if not seconds > 0:
        raise ConfigError(f"timeout is {seconds:g} s; give a positive number of seconds or None")
    with anyio.move_on_after(seconds) as scope:
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
    if not 0 <= offset < _OFFSETS:
        raise ConfigError(f"offset is {offset}; give 0 or more")
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


def _check_mode(mode: int | None) -> None:
    if mode is not None and not 0 <= mode <= _PERMISSIONS:
        raise ConfigError(f"mode is {mode:#o}; give permission bits, 0 to {_PERMISSIONS:#o}")
