"""What the host takes as an answer: so many bytes and values for each kind of request, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from sandbox.guest.parse import MOST_DEPTH, Parser
from sandbox.message import MessageError, decode_json

_AT_ONCE_BYTES = 128 * 1024
_AT_ONCE_NANOSECONDS = 4_000_000
_PER_BYTE, _PER_VALUE, _PER_ESCAPE = 4, 250, 40
"""What the decoder in C takes at most, in nanoseconds of a slow processor."""


class Bound(NamedTuple):
    """The largest answer to one kind of request."""

    bytes: int
    values: int
    """How many characters set values apart, outside of texts."""

    @property
    def memory(self) -> int:
        """Bytes of the host's memory that such an answer takes at most, whatever it is."""
        at_once = min(self.bytes, _AT_ONCE_BYTES)  # what is decoded at once may be a text of four bytes a character
        return 2 * self.bytes + 4 * at_once + 128 * self.values


FILE = Bound(64 * 1024, 64)
"""One file, or why there is none. A path has at most 4 KiB, of which each byte may need six."""
FILES = Bound(1024 * 1024, 12_000)
"""A part of a list, or of what has changed: up to 500 entries."""
TREE = Bound(4 * 1024 * 1024, 12_000)
"""What was made of a tree, and what was not: up to 1,000 names."""
CELL = Bound(8 * 1024 * 1024 + 64 * 1024, 100_000)
"""A cell's value, what it displayed, and its error: the guest leaves out what would not fit into 8 MiB."""
STATUS = Bound(128, 8)
"""A cell of bash."""


class Decoding:
    """One JSON message that is being decoded. `steps` is short where little can come of it."""

    def __init__(self, body: bytes | bytearray, bound: Bound) -> None:
        self.size = len(body)
        self._body: bytes | bytearray = body
        self._bound = bound
        self._fields: dict[str, Any] | None = None
        self.steps = self._steps()

    @property
    def fields(self) -> dict[str, Any]:
        """What was said. Only after the last step."""
        assert self._fields is not None
        return self._fields

    def _steps(self) -> Iterator[None]:
        """Decode, and pause whenever that has taken a moment. Raises `MessageError` for what was not asked for."""
        body, self._body = self._body, b""
        if _is_quick(body, self._bound.values):
            self._fields = decode_json(body)
            if _depth(self._fields) > MOST_DEPTH:
                raise MessageError(f"a message is nested deeper than {MOST_DEPTH} levels")
            return
        parser = Parser(bytearray(body) if isinstance(body, bytes) else body, self._bound.values, self._bound.bytes)
        yield from parser.steps()
        self._fields = parser.fields


def _is_quick(body: bytes | bytearray, most_values: int) -> bool:
    """Return whether the decoder in C takes a moment only, and makes no more values than allowed."""
    if len(body) > _AT_ONCE_BYTES:
        return False
    values = sum(body.count(mark) for mark in (b",", b":", b"[", b"{"))
    nanoseconds = len(body) * _PER_BYTE + values * _PER_VALUE + body.count(b"\\") * _PER_ESCAPE
    return values <= most_values and nanoseconds <= _AT_ONCE_NANOSECONDS


def _depth(value: object) -> int:
    """Return how deep containers are nested in each other."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            below
            for above in level
            for below in (above.values() if isinstance(above, dict) else above if isinstance(above, list) else ())
            if isinstance(below, dict | list)
        ]
    return depth
