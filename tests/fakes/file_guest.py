"""A guest whose file servers say what a script has them say: honest about frames and credit, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from sandbox.guest.files import Files
from sandbox.message import MessageDecoder, Tag, decode_json, encode, encode_json
from sandbox.wire import (
    CHUNK_BYTES,
    GRANT_BYTES,
    HOST_LIMITS,
    OUTPUTS,
    WINDOW_BYTES,
    Decoder,
    Frame,
    Kind,
    decode_window,
    window,
)
from sandbox.wire import encode as encode_frame
from tests.fuzz.channel import Channel

Script = Callable[[dict[str, Any]], Iterable[bytes]]
"""Returns what is said to a request: messages, of which no more are asked for than there is credit for."""
_KILLED = json.dumps({"code": None, "signal": 9, "cpu_us": 100}).encode()


def stat_of(kind: str, **more: object) -> dict[str, object]:
    """Return what a guest says of a file."""
    return {"type": kind, "size": 1, "mode": 0o644, "mtime": 0.0, "uid": 1, "gid": 1, **more}


def in_tree(kind: str, name: str, **more: object) -> dict[str, object]:
    """Return what a guest says of something in a tree that it packs."""
    return {"type": kind, "name": name, "size": 1, "mode": 0o644, "mtime": 0, **more}


def says(**fields: object) -> bytes:
    """Return an answer's bytes."""
    return encode_json(fields)


def data(body: bytes = b"") -> bytes:
    """Return a piece of content."""
    return encode(Tag.DATA, body)


class FileGuest(Channel):
    """Takes what `takes` says in all of each server's requests, and answers until it is killed.

    With a `pace`, there are this many seconds between two messages.
    """

    def __init__(
        self, script: Script, *, takes: int | None = None, pace: float | None = None, is_shell: bool = False
    ) -> None:
        self._frames = Decoder(HOST_LIMITS)
        self._script = script
        self._takes = takes
        self._pace = pace
        self._is_shell = is_shell
        """Whether requests are no messages: the script hears of each that something was asked."""
        self._servers: dict[int, _Said] = {}
        self._loop = asyncio.get_running_loop()
        super().__init__()
        self.files = Files(self.client, None)

    def write(self, data: bytes) -> None:
        super().write(data)
        for frame in self._frames.feed(data):
            self._loop.call_soon(self._hear, frame)

    def _hear(self, frame: Frame) -> None:
        if self.client.lost is not None:
            return
        if frame.kind is Kind.PING:
            self._say(Kind.PONG, 0)
        elif frame.kind is Kind.START:
            self._servers[frame.id] = _Said(self._takes)
        elif frame.kind is Kind.KILL and self._servers.pop(frame.id, None) is not None:
            self._say(Kind.EXITED, frame.id, _KILLED)
        elif (server := self._servers.get(frame.id)) is not None:
            self._serve(server, frame)

    def _serve(self, server: _Said, frame: Frame) -> None:
        if frame.kind is Kind.ASK:
            if granted := server.take(len(frame.payload)):
                self._say(Kind.WINDOW_IN, frame.id, window(Kind.ASK, granted))
            if self._is_shell:
                server.script = chain(server.script, self._script({}))
            else:
                server.asked.feed(frame.payload)
            while (message := server.asked.next()) is not None:
                if message[0] is Tag.JSON:
                    server.script = chain(server.script, self._script(decode_json(message[1])))
        elif frame.kind is Kind.WINDOW_OUT:
            stream, count = decode_window(frame.payload, OUTPUTS)
            server.credit += count if stream is Kind.ANSWER else 0
        if self._pace is None:
            while frame.id in self._servers and self.client.lost is None and (said := server.next()):
                self._say(Kind.ANSWER, frame.id, said)
        elif server.beat is None and frame.kind is Kind.ASK:
            self._trickle(server, frame.id)

    def _trickle(self, server: _Said, ident: int) -> None:
        assert self._pace is not None
        server.beat = self._loop.call_later(self._pace, self._trickle, server, ident)
        if ident not in self._servers or self.client.lost is not None:
            server.beat.cancel()
        elif said := server.next(1):
            self._say(Kind.ANSWER, ident, said)

    def _say(self, kind: Kind, ident: int, payload: bytes = b"") -> None:
        self.say(encode_frame(kind, 0, ident, payload))


class _Said:
    """One server: what it has to say, and the credit for it."""

    def __init__(self, takes: int | None) -> None:
        self.credit = WINDOW_BYTES
        self.asked = MessageDecoder()
        self.beat: asyncio.TimerHandle | None = None
        self.script: Iterator[bytes] = iter(())
        self._takes = takes
        self._owed = 0
        self._unsaid = bytearray()

    def take(self, count: int) -> int:
        """Return how much room is granted now that this number of bytes came: nothing, or a portion."""
        if self._takes is not None:
            count = min(count, self._takes)
            self._takes -= count
        self._owed += count
        if self._owed < GRANT_BYTES:
            return 0
        granted, self._owed = self._owed, 0
        return granted

    def next(self, least: int = CHUNK_BYTES) -> bytes:
        """Return what may be said now: messages of so many bytes, if there are; nothing if that is nothing."""
        while len(self._unsaid) < min(self.credit, least) and (message := next(self.script, None)) is not None:
            self._unsaid += message
        said = bytes(self._unsaid[: min(self.credit, CHUNK_BYTES)])
        del self._unsaid[: len(said)]
        self.credit -= len(said)
        return said
