"""Messages between the host and a server inside the guest, on the control streams of an execution.

One definition for both ends, standard library only. A message is a 5-byte header (length, tag) and a body: a JSON
object, a piece of a file, or nothing. The receiver checks tag and length before it keeps anything of the body.
"""

from __future__ import annotations

import json
import math
import re
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
JSON_VALUES = 500_000
"""A JSON message has no more values than about so many: each costs up to 80 bytes of the receiver's memory."""
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


def decode_header(header: bytes) -> tuple[int, Tag]:
    """Return length and tag; raise `MessageError` unless both are allowed."""
    length, tag = _HEADER.unpack(header)
    limit = _LIMITS.get(tag)
    if limit is None:
        raise MessageError(f"message tag {tag} is unknown")
    if length > limit:
        raise MessageError(f"a message announces {length} bytes, the limit is {limit}")
    return length, Tag(tag)


def decode_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`; raise `MessageError` for anything else.

    Numbers that JSON has not (NaN and the infinities) become None, so that whatever comes out is JSON again.
    """
    if (
        _marks(body) > JSON_VALUES
        and _marks(re.sub(rb'"(?:[^"\\]++|\\.?)*+"?', b"", body, flags=re.DOTALL)) > JSON_VALUES
    ):
        raise MessageError(f"a message has more than {JSON_VALUES} values")
    try:
        fields = _JSON.decode(body.decode())
    except (ValueError, RecursionError, MemoryError) as error:
        raise MessageError(f"a message is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise MessageError(f"a message is a JSON {type(fields).__name__}, not an object")
    return fields


def _marks(body: bytes) -> int:
    """Return how many characters there are that set values apart."""
    return sum(body.count(mark) for mark in (b",", b":", b"[", b"{"))


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object names a field twice")
    return fields


_ENCODER = json.JSONEncoder(separators=(",", ":"))
_JSON = json.JSONDecoder(
    parse_constant=lambda _: None, parse_float=_finite, object_pairs_hook=_object_without_duplicates
)


class MessageDecoder:
    """Turns received bytes into messages; holds at most one unfinished message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Tag, bytes]]:
        """Take received bytes and return the messages that are complete; raise `MessageError` as early as can be."""
        self._buffer += data
        messages: list[tuple[Tag, bytes]] = []
        start, size = 0, len(self._buffer)
        with memoryview(self._buffer) as view:  # so that a body is copied once
            while size - start >= HEADER_BYTES:
                length, tag = decode_header(bytes(view[start : start + HEADER_BYTES]))
                end = start + HEADER_BYTES + length
                if size < end:
                    break
                messages.append((tag, bytes(view[start + HEADER_BYTES : end])))
                start = end
        if start:
            del self._buffer[:start]
        return messages
