"""File servers in the guest, lent for one request each: started when needed, used again while they behave."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import anyio
from pydantic import BaseModel, ValidationError

from sandbox import arguments
from sandbox.arguments import Data
from sandbox.certificate import Cause
from sandbox.errors import GuestFileError
from sandbox.guest.beside import NOT_THEIRS
from sandbox.guest.client import GuestClient
from sandbox.guest.request import Request
from sandbox.guest.said import fault
from sandbox.guest.server import Server, ServerGone
from sandbox.message import DATA_BYTES, Tag
from sandbox.printable import printable
from sandbox.result import Outcome

SILENCE_SECONDS = 120.0
"""A file server that neither answers nor takes anything for so long is ended: whoever is root inside may stop it."""
_SERVERS = 4
"""More do not make a guest of one processor any faster: each of them costs it a start and an end."""

_EXPLAINED = (errno.EINVAL, errno.ENAMETOOLONG)
"""What the guest's own words are added to: they say what is wrong with a file or a path."""
_SHOWN_CHARACTERS = 1000
"""Of a name in the guest."""

Content = Data | AsyncIterable[Data]
Said = TypeVar("Said", bound=BaseModel)


class FileServers:
    """The file servers of one user. Of calls that take a moment, so many are served at once; the others wait."""

    def __init__(self, client: GuestClient, user: str | None) -> None:
        self._client = client
        self._user = user
        # An account that was made for a while can be removed only when no process of it is left.
        self._most_idle = _SERVERS if user in (None, "user", "root") else 0
        self._idle: list[Server] = []
        self._turns = anyio.Semaphore(_SERVERS)

    def start(self, op: str) -> Server:
        return Server(self._client, Request(op, {}, user=self._user, is_server=True, keep_bytes=4096))

    @asynccontextmanager
    async def lend(self, path: str) -> AsyncIterator[Server]:
        """Lend a server for a call that takes as long as its caller likes."""
        self._client.check_lease()
        self._idle = [server for server in self._idle if server.is_alive]
        server = self._idle.pop() if self._idle else self.start("files")
        server.is_idle = False
        try:
            yield server
        except ServerGone:
            raise await why_gone(server, path) from None
        finally:
            if server.is_idle and server.is_alive and len(self._idle) < self._most_idle:
                self._idle.append(server)
            else:  # its request did not come to its end, or no process of that user may stay
                server.close()
        if not self._most_idle:
            await server.execution.wait_over()

    @asynccontextmanager
    async def lend_briefly(self, path: str) -> AsyncIterator[Server]:
        """Lend a server for a call that waits for nobody but the guest."""
        self._client.check_lease()
        async with self._turns, self.lend(path) as server:
            yield server


async def answer(server: Server, path: str, *, is_last: bool = True) -> dict[str, Any]:
    """Return an answer's fields; raise the refusal if it is one."""
    with patience(server):
        fields = await server.receive_json()
    server.is_idle = is_last or "errno" in fields
    if "errno" in fields:
        raise _refusal(server, fields, path)
    return fields


async def piece(server: Server, path: str) -> bytes | None:
    """Return the next piece of content, or None at its end; raise the refusal if the file cannot be read further."""
    with patience(server):
        found = await server.receive()
    if isinstance(found, dict):
        server.is_idle = True
        raise _refusal(server, found, path)
    return found


@contextmanager
def patience(server: Server) -> Iterator[None]:
    """End a server that keeps its caller waiting for too long, and raise `ServerGone`."""
    with anyio.move_on_after(SILENCE_SECONDS) as scope:
        yield
    if scope.cancelled_caught:
        server.execution.stop(Cause.IDLE, f"it was silent for {SILENCE_SECONDS:g} s")
        raise ServerGone


def checked(server: Server, model: type[Said], found: object) -> list[Said]:
    """Return what the guest says as models; raise `ServerGone` if it does not fit."""
    try:
        if not isinstance(found, list):
            raise TypeError(f"{type(found).__name__} came instead of a list")
        return [model.model_validate(one) for one in found]
    except TypeError as error:
        raise server.nonsense(str(error)) from error
    except ValidationError as error:
        raise server.nonsense(fault(error)) from None


async def send_content(server: Server, content: bytes | AsyncIterable[Data]) -> None:
    """Send content to its end, or until the guest refuses it; raise `ServerGone` if nobody takes it any more."""
    if isinstance(content, bytes):
        await _send_pieces(server, content)
    else:
        await _send_all(server, content)
    await _send(server, Tag.END)


async def _send_pieces(server: Server, data: bytes) -> None:
    for start in range(0, len(data), DATA_BYTES):
        if not server.is_alive:
            raise ServerGone
        if server.has_answered:
            return
        await _send(server, Tag.DATA, data[start : start + DATA_BYTES])


async def _send(server: Server, tag: Tag, body: bytes = b"") -> None:
    with patience(server):
        await server.send(tag, body)


async def _send_all(server: Server, content: AsyncIterable[Data]) -> None:
    """Send what comes; do not wait for more when the server has ended."""
    failures: list[BaseException] = []

    async def stop_when_gone() -> None:
        await server.execution.wait_over()
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(stop_when_gone)
        try:
            async for piece in content:
                await _send_pieces(server, arguments.data("content", piece))
                if server.has_answered:
                    break
        except NOT_THEIRS:
            raise
        except BaseException as error:  # noqa: BLE001 - raised below, outside of the group
            failures.append(error)
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not server.is_alive:
        raise ServerGone


async def why_gone(server: Server, path: str) -> GuestFileError:
    """Return what to raise when a file server has ended; raise `GuestLost` if it is because the VM has."""
    result = await server.execution.wait()
    said = printable(result.stderr[-500:].decode("utf-8", "replace").strip())
    number = errno.ETIMEDOUT if result.outcome is Outcome.TIMED_OUT else errno.EIO
    return GuestFileError(number, f"the guest's file server ended ({said or result.describe()})", path)


def _refusal(server: Server, fields: Mapping[str, Any], path: str) -> GuestFileError:
    number, text = fields.get("errno"), fields.get("text")
    if type(number) is not int or not isinstance(text, str):
        raise server.nonsense("an error without number and text")
    if number not in errno.errorcode:
        number = errno.EIO
    said = os.strerror(number)
    if number in _EXPLAINED and text != said:
        said += f" ({printable(text, 200)})"
    if isinstance(name := fields.get("name"), str):  # of what is below `path`
        path = f"{path}/{printable(name, _SHOWN_CHARACTERS)}"
    return GuestFileError(number, said, path)
