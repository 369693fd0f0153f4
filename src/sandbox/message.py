"""Messages between the host and a server inside the guest, on the control streams of an execution.

One definition for both ends, standard library only. A message is a 5-byte header (length, tag) and a body: a JSON
object in ASCII, a piece of a file, or nothing. The receiver checks tag and length before it keeps anything of the body.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

_HEADER = struct.Struct("!IB")
HEADER_BYTES = _HEADER.size


class Tag(IntEnum):
    """What a message is."""

    JSON = 1
    DATA = 2
    END = 3  # of the pieces before it


JSON_BYTES = 16 * 1024 * 1024
"""The largest request. What the host takes as an answer is bounded by what it has asked for; see `guest/answers.py`."""
DATA_BYTES = 128 * 1024
_LIMITS: Mapping[int, int] = {Tag.JSON: JSON_BYTES, Tag.DATA: DATA_BYTES, Tag.END: 0}


class MessageError(Exception):
    """Bytes that are no message. The server that sent them is of no further use."""


def encode(tag: Tag, body: bytes = b"") -> bytes:
    """Return the bytes of one message."""
    return _HEADER.pack(len(body), tag) + body


def encode_header(tag: Tag, length: int) -> bytes:
    """Return the header of a message whose body is sent beside it."""
    return _HEADER.pack(length, tag)


def encode_json(fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of one JSON message. Names that are no text travel as lone surrogates."""
    return encode(Tag.JSON, _ENCODER.encode(fields).encode())


def decode_header(header: bytes | bytearray) -> tuple[int, Tag]:
    """Return length and tag; raise `MessageError` unless both are allowed."""
    length, tag = _HEADER.unpack(header)
    limit = _LIMITS.get(tag)
    if limit is None:
        raise MessageError(f"message tag {tag} is unknown")
    if length > limit:
        raise MessageError(f"a message announces {length} bytes, the limit is {limit}")
    return length, Tag(tag)


def decode_json(body: bytes | bytearray) -> dict[str, Any]:
    """Return the JSON object in `body`, all at once; raise `MessageError` for anything else.

    Numbers that JSON has not (NaN and the infinities) become None, so that whatever comes out is JSON again.
    """
    try:
        fields = _JSON.decode(body.decode("ascii"))
    except (ValueError, RecursionError, MemoryError) as error:
        raise MessageError(f"a message is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise MessageError(f"a message is a JSON {type(fields).__name__}, not an object")
    return fields


def finite(text: str | bytes) -> float | None:
    """Return a number of JSON; None for what is beyond the largest float."""
    value = float(text)
    return value if math.isfinite(value) else None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object names a field twice")
    return fields


_ENCODER = json.JSONEncoder(separators=(",", ":"))
_JSON = json.JSONDecoder(
    parse_constant=lambda _: None, parse_float=finite, object_pairs_hook=_object_without_duplicates
)


class MessageDecoder:
    """Turns received bytes into messages, one when asked. What was not asked for yet stays as it came."""

    def __init__(self, json_bytes: int = JSON_BYTES) -> None:
        self.json_bytes = json_bytes
        """The longest JSON message that is taken from now on."""
        self._buffer = bytearray()
        self._tag = Tag.END
        self._end = 0
        """Where the first message ends; 0 as long as its header is not there."""

    @property
    def held(self) -> int:
        """Bytes of messages that nobody has asked for, or that are not complete."""
        return len(self._buffer)

    @property
    def has_message(self) -> bool:
        """Whether `next` will return one. False also for a header that is not allowed."""
        return 0 < self._end <= len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take received bytes; raise `MessageError` as soon as the next message's header is not allowed."""
        self._buffer += data
        self._look()

    def next(self) -> tuple[Tag, bytes | bytearray] | None:
        """Return the next message, or None if it is not complete; raise `MessageError` if it is none."""
        self._look()
        if not self.has_message:
            return None
        buffer, end, self._end = self._buffer, self._end, 0
        if end <= DATA_BYTES + HEADER_BYTES:
            with memoryview(buffer) as view:  # so that a body is copied once
                body: bytes | bytearray = bytes(view[HEADER_BYTES:end])
            del buffer[:end]
        else:  # the body keeps its memory, what comes behind it is copied
            body, self._buffer = buffer, buffer[end:]
            del body[end:]
            del body[:HEADER_BYTES]
        return self._tag, body

    def _look(self) -> None:
        if self._end or len(self._buffer) < HEADER_BYTES:
            return
        length, self._tag = decode_header(self._buffer[:HEADER_BYTES])
        if self._tag is Tag.JSON and length > self.json_bytes:
            raise MessageError(f"a message announces {length} bytes of JSON, the limit here is {self.json_bytes}")
        self._end = HEADER_BYTES + length
