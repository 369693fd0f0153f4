"""The host's side of a server inside the guest: a program that is asked and answers, over its control streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from sandbox.certificate import Cause
from sandbox.guest.answers import FILE, Bound, Decoding
from sandbox.guest.client import GuestClient
from sandbox.guest.request import Request
from sandbox.message import MessageDecoder, MessageError, Tag, encode, encode_json
from sandbox.wire import Kind


class ServerGone(Exception):
    """The server has ended, or answers nonsense. Its execution tells how."""


class Server:
    """One such program. What it says is the guest's word: it is checked, and harms nobody but its own caller."""

    def __init__(self, client: GuestClient, request: Request, bound: Bound = FILE) -> None:
        self.is_idle = True
        """Whether the last request has come to its end, so that another one may follow."""
        self.client = client
        self.execution = client.start(request)
        self._decoder = MessageDecoder()
        self._bound = bound
        self._decoding: Decoding | None = None
        self._fed = 0
        self._news = anyio.Event()
        self.expect(bound)
        self.execution.take_answers(self)

    @property
    def taken(self) -> int:
        """How many bytes are off the guest's window.

        Not what nobody has asked for: it stays as it came, so that small messages cost no more than large ones. A
        message that is coming is taken, up to its bound, if no other is being decoded.
        """
        if self._decoding is not None:
            return self._fed - self._decoder.held - self._decoding.size
        return self._fed - (self._decoder.held if self._decoder.has_message else 0)

    @property
    def is_alive(self) -> bool:
        """Whether it may be asked: it runs, and nobody has ordered its end."""
        return not self.execution.has_ended and not self.execution.was_stopped

    @property
    def has_answered(self) -> bool:
        """Whether something has come that nobody has received."""
        return bool(self._decoder.held)

    def expect(self, bound: Bound) -> None:
        """Take answers up to this bound from now on. It is stated before a request is sent."""
        self._bound = bound
        self._decoder.json_bytes = bound.bytes

    def feed(self, data: bytes) -> None:
        """Take bytes of the answer stream. What comes from a server whose end was ordered goes nowhere."""
        if self.execution.was_stopped:
            return
        self._fed += len(data)
        try:
            self._decoder.feed(data)
        except MessageError as error:
            self.nonsense(str(error))
            return
        self.wake()

    def wake(self) -> None:
        self._news.set()

    async def ask(self, fields: Mapping[str, Any]) -> None:
        """Send a request."""
        await self.execution.send_input(Kind.ASK, encode_json(fields))

    async def send(self, tag: Tag, body: bytes = b"") -> None:
        """Send a piece that belongs to a request."""
        await self.execution.send_input(Kind.ASK, encode(tag, body))

    async def receive(self) -> dict[str, Any] | bytes | None:
        """Return the next message: the fields of an answer, a piece of content, or None for its end.

        A large answer is decoded in steps, between which others have their turn. When that is cancelled, the next
        call goes on with it. Raises `ServerGone` if there will be no message.
        """
        try:
            if self._decoding is None:
                tag, body = await self._next()
                if tag is not Tag.JSON:
                    self.execution.settle(Kind.ANSWER)
                    return bytes(body) if tag is Tag.DATA else None
                self._decoding = Decoding(body, self._bound)
            for _ in self._decoding.steps:
                await checkpoint()
            fields = self._decoding.fields
        except MessageError as error:
            self._decoding = None
            raise self.nonsense(str(error)) from error
        self._decoding = None
        self.execution.settle(Kind.ANSWER)
        return fields

    async def receive_json(self) -> dict[str, Any]:
        """Return the next message's fields; raise `ServerGone` if it has none."""
        fields = await self.receive()
        if not isinstance(fields, dict):
            raise self.nonsense("content came instead of JSON")
        return fields

    async def _next(self) -> tuple[Tag, bytes | bytearray]:
        while (message := self._decoder.next()) is None:
            if self.execution.has_ended:
                raise ServerGone
            self._news = anyio.Event()
            await self._news.wait()
        return message

    def nonsense(self, what: str) -> ServerGone:
        """End a server that said what an honest one would not; return what to raise."""
        self.is_idle = False
        self.execution.stop(Cause.PROTOCOL, f"a server in the guest broke its protocol: {what}")
        return ServerGone()

    def close(self) -> None:
        """End the server and all that it started."""
        self.execution.retire()
