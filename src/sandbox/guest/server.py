"""The host's side of a server inside the guest: a program that is asked and answers, over its control streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import anyio

from sandbox.certificate import Cause
from sandbox.guest.client import GuestClient
from sandbox.guest.request import Request
from sandbox.message import HEADER_BYTES, MessageDecoder, MessageError, Tag, decode_json, encode, encode_json
from sandbox.wire import Kind


class ServerGone(Exception):
    """The server has ended, or answers nonsense. Its execution tells how."""


class Server:
    """One such program. What it says is the guest's word: it is checked, and harms nobody but its own caller."""

    def __init__(self, client: GuestClient, request: Request) -> None:
        self.taken = 0
        self.is_idle = True
        """Whether the last request has come to its end, so that another one may follow."""
        self.client = client
        self.execution = client.start(request)
        self._decoder = MessageDecoder()
        self._messages: deque[tuple[Tag, bytes]] = deque()
        self._fed = 0
        self._queued = 0
        self._news = anyio.Event()
        self.execution.take_answers(self)

    @property
    def is_alive(self) -> bool:
        """Whether it may be asked: it runs, and nobody has ordered its end."""
        return not self.execution.has_ended and not self.execution.was_stopped

    @property
    def has_answered(self) -> bool:
        """Whether there is a message that nobody has received."""
        return bool(self._messages)

    def feed(self, data: bytes) -> None:
        """Take bytes of the answer stream. What comes from a server whose end was ordered goes nowhere."""
        if self.execution.was_stopped:
            return
        self._fed += len(data)
        try:
            messages = self._decoder.feed(data)
        except MessageError as error:
            self.nonsense(str(error))
            return
        self._messages.extend(messages)
        self._queued += sum(HEADER_BYTES + len(body) for _, body in messages)  # a body may be empty
        self.taken = self._fed - self._queued
        self.wake()

    def wake(self) -> None:
        self._news.set()

    async def ask(self, fields: Mapping[str, Any]) -> None:
        """Send a request."""
        await self.execution.send_input(Kind.ASK, encode_json(fields))

    async def send(self, tag: Tag, body: bytes = b"") -> None:
        """Send a piece that belongs to a request."""
        await self.execution.send_input(Kind.ASK, encode(tag, body))

    async def receive(self) -> tuple[Tag, bytes]:
        """Return the next message; raise `ServerGone` if there will be none."""
        while not self._messages:
            if self.execution.has_ended:
                raise ServerGone
            self._news = anyio.Event()
            await self._news.wait()
        tag, body = self._messages.popleft()
        self._queued -= HEADER_BYTES + len(body)
        self.taken = self._fed - self._queued
        self.execution.settle(Kind.ANSWER)
        return tag, body

    async def receive_json(self) -> dict[str, Any]:
        """Return the next message's fields; raise `ServerGone` if it has none."""
        tag, body = await self.receive()
        if tag is not Tag.JSON:
            raise self.nonsense(f"a {tag.name} message came instead of JSON")
        return self.decode(body)

    def decode(self, body: bytes) -> dict[str, Any]:
        """Return the fields of a JSON message."""
        try:
            return decode_json(body)
        except MessageError as error:
            raise self.nonsense(str(error)) from error

    def nonsense(self, what: str) -> ServerGone:
        """End a server that said what an honest one would not; return what to raise."""
        self.is_idle = False
        self.execution.stop(Cause.PROTOCOL, f"a server in the guest broke its protocol: {what}")
        return ServerGone()

    def close(self) -> None:
        """End the server and all that it started."""
        self.execution.retire()
