"""The frames that host and guest exchange: one definition for both ends, standard library only.

A frame is a 13-byte header (payload length, epoch, execution id, kind) and a payload. The receiver checks kind and
length before it allocates anything. The epoch is drawn anew for each clone, so that a byte from before a snapshot is
never taken for one after it. Payloads are raw bytes (`STDIN`, `ASK`, `OUT`, `ERR`, `ANSWER`), fixed structures
(`HELLO`, `READY`, `STARTED`, `WINDOW`, `RESIZE`) or JSON objects. HELLO and READY have fixed layouts because a clone
handles them with cold caches, where every function that need not run counts.

Flow control is per stream: a sender starts with `WINDOW_BYTES` of credit and gets more as the receiver consumes, so
neither side ever buffers more than one window for a stream. Credit comes back in portions of at least `GRANT_BYTES`:
a program that says little costs no window frames at all.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from enum import IntEnum
from functools import cache

TYPE_CHECKING = False  # as in `typing`, which takes as long to import as half the agent
if TYPE_CHECKING:
    from collections.abc import Mapping
    from json import JSONDecoder
    from typing import Any, NamedTuple

PROTOCOL_VERSION = 4
PORT_NAME = "io.sandbox.agent.0"
WINDOW_BYTES = 256 * 1024
CHUNK_BYTES = 64 * 1024
GRANT_BYTES = WINDOW_BYTES // 4

ENTROPY_BYTES = 64
NONCE_BYTES = 16
HOSTNAME_BYTES = 63

HEADER = struct.Struct("!IIIB")
HEADER_BYTES = HEADER.size
_WINDOW = struct.Struct("!BI")
_PAIR = struct.Struct("!HH")
_PID = struct.Struct("!I")
_NAMES = f"32s36s{HOSTNAME_BYTES}s"
HELLO = struct.Struct(f"!{ENTROPY_BYTES}sQ{NONCE_BYTES}s{_NAMES}")
"""Entropy, wall clock in ns, a nonce, machine id, boot id, hostname padded with NUL."""
READY = struct.Struct(f"!QHH{NONCE_BYTES}s{_NAMES}")
"""The guest's wall clock in ns, protocol version, agent version, HELLO's nonce, and the three names in force."""
HELLO_FRAME, READY_FRAME = (struct.Struct(HEADER.format + body.format[1:]) for body in (HELLO, READY))


class Kind(IntEnum):
    """What a frame means. Below 64 the host speaks, above 64 the guest does."""

    HELLO = 1  # take this identity, clock, entropy and epoch
    START = 2  # start an execution
    STDIN = 3
    STDIN_EOF = 4
    KILL = 5  # signal an execution, or kill its whole tree
    QUIESCE = 6  # become still: the next thing that happens is the snapshot
    WINDOW_OUT = 7  # the host consumed so many bytes of an output stream
    ASK = 8  # bytes for a server's control stream
    RESIZE = 9  # the terminal has so many rows and columns now
    PING = 10
    PREPARE = 11  # do what takes time before a snapshot

    READY = 65  # the answer to HELLO
    OUT = 66
    ERR = 67
    EXITED = 68  # the last frame of an execution
    QUIESCED = 69
    WINDOW_IN = 70  # the guest consumed so many bytes of an input stream
    ANSWER = 71  # bytes from a server's control stream
    STARTED = 72  # the execution has a process now
    PONG = 73
    PREPARED = 74


KINDS: Mapping[int, Kind] = {int(kind): kind for kind in Kind}
"""`Kind(number)` runs four functions, which an emulated clone has to translate before it answers."""
INPUTS = (Kind.STDIN, Kind.ASK)
OUTPUTS = (Kind.OUT, Kind.ERR, Kind.ANSWER)

_CONTROL_BYTES = 64 * 1024
HOST_LIMITS: Mapping[int, int] = {
    Kind.HELLO: HELLO.size,
    Kind.START: 8 * 1024 * 1024,
    Kind.STDIN: CHUNK_BYTES,
    Kind.STDIN_EOF: 0,
    Kind.KILL: _CONTROL_BYTES,
    Kind.QUIESCE: 0,
    Kind.WINDOW_OUT: _WINDOW.size,
    Kind.ASK: CHUNK_BYTES,
    Kind.RESIZE: _PAIR.size,
    Kind.PING: 0,
    Kind.PREPARE: 0,
}
"""The largest payload of each kind that the host may send."""

GUEST_LIMITS: Mapping[int, int] = {
    Kind.READY: READY.size,
    Kind.OUT: CHUNK_BYTES,
    Kind.ERR: CHUNK_BYTES,
    Kind.EXITED: 16 * 1024,
    Kind.QUIESCED: 0,
    Kind.WINDOW_IN: _WINDOW.size,
    Kind.ANSWER: CHUNK_BYTES,
    Kind.STARTED: _PID.size,
    Kind.PONG: 0,
    Kind.PREPARED: 0,
}
"""The largest payload of each kind that the guest may send."""


class FrameError(Exception):
    """Bytes that no honest peer would send. The connection is of no further use."""


if TYPE_CHECKING:

    class Frame(NamedTuple):
        """One decoded frame."""

        kind: Kind
        epoch: int
        id: int
        payload: bytes

else:
    Frame = namedtuple("Frame", ("kind", "epoch", "id", "payload"))


def encode(kind: Kind, epoch: int, ident: int = 0, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    return HEADER.pack(len(payload), epoch, ident, kind) + payload


def encode_header(kind: Kind, epoch: int, ident: int, length: int) -> bytes:
    """Return the header of a frame whose payload is sent beside it."""
    return HEADER.pack(length, epoch, ident, kind)


def encode_json(kind: Kind, epoch: int, ident: int, message: Mapping[str, Any]) -> bytes:
    """Return the bytes of one frame whose payload is a JSON object.

    Raise `ValueError` for NaN and the infinities, which JSON has not.
    """
    import json  # noqa: PLC0415 - as late as possible: a guest that boots has no use for it yet

    return encode(kind, epoch, ident, json.dumps(message, separators=(",", ":"), allow_nan=False).encode())


def window(stream: Kind, count: int) -> bytes:
    """Return the payload of a `WINDOW` frame: so many bytes of `stream` were consumed."""
    return _WINDOW.pack(stream, count)


def decode_window(payload: bytes, streams: tuple[Kind, ...]) -> tuple[Kind, int]:
    """Return stream and count of a `WINDOW` frame; raise `FrameError` unless both are possible."""
    if len(payload) != _WINDOW.size:
        raise FrameError(f"a window frame has {len(payload)} bytes instead of {_WINDOW.size}")
    stream, count = _WINDOW.unpack(payload)
    if stream not in streams:
        raise FrameError(f"a window was granted for stream {stream}, which has none")
    if not 0 < count <= WINDOW_BYTES:
        raise FrameError(f"a window of {count} bytes was granted, the limit is {WINDOW_BYTES}")
    return Kind(stream), count


def size(rows: int, columns: int) -> bytes:
    """Return the payload of a `RESIZE` frame."""
    return _PAIR.pack(rows, columns)


def decode_size(payload: bytes) -> tuple[int, int]:
    """Return rows and columns of a `RESIZE` frame."""
    if len(payload) != _PAIR.size:
        raise FrameError(f"a resize frame has {len(payload)} bytes instead of {_PAIR.size}")
    rows, columns = _PAIR.unpack(payload)
    return rows, columns


def pid(number: int) -> bytes:
    """Return the payload of a `STARTED` frame."""
    return _PID.pack(number)


def decode_pid(payload: bytes) -> int:
    """Return the process id in a `STARTED` frame."""
    if len(payload) != _PID.size:
        raise FrameError(f"a start frame has {len(payload)} bytes instead of {_PID.size}")
    number: int = _PID.unpack(payload)[0]
    return number


def decode_json(payload: bytes) -> dict[str, Any]:
    """Return the JSON object in `payload`; raise `FrameError` for anything else."""
    try:
        text = payload.decode()
        message, end = _json().raw_decode(text)  # `decode` looks for white space besides, by regular expressions
    except (ValueError, RecursionError, MemoryError) as error:
        raise FrameError(f"the payload is not JSON: {error}") from None
    if end != len(text):
        raise FrameError(f"the payload goes on after its JSON, at character {end}")
    if not isinstance(message, dict):
        raise FrameError(f"the payload is a JSON {type(message).__name__}, not an object")
    return message


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object names a field twice")
    return fields


@cache
def _json() -> JSONDecoder:
    import json  # noqa: PLC0415 - see `encode_json`

    return json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object_without_duplicates)


def refusal(kind: int, length: int, limits: Mapping[int, int]) -> FrameError:
    """Return what is wrong with a header that announces more than its kind may have."""
    if kind not in limits:
        return FrameError(f"frame kind {kind} is unknown or not for this direction")
    return FrameError(f"a {Kind(kind).name} frame announces {length} bytes, the limit is {limits[kind]}")


class Decoder:
    """Turns received bytes into frames; holds at most one unfinished frame."""

    def __init__(self, limits: Mapping[int, int]) -> None:
        self._limits = limits
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take received bytes and return the frames that are now complete.

        Raise `FrameError` as soon as a header names an unknown kind or a length over the limit of its kind: before
        the payload has arrived, so a liar costs no memory.
        """
        frames: list[Frame] = []
        if not self._buffer:  # as almost always: nothing is copied but payloads
            start = self._take(data, frames)
            if start < len(data):
                self._buffer += data[start:]
            return frames
        self._buffer += data
        with memoryview(self._buffer) as view:  # so that a payload is copied once
            start = self._take(view, frames)
        if start:
            del self._buffer[:start]
        return frames

    def _take(self, data: bytes | memoryview, frames: list[Frame]) -> int:
        """Append the frames that are whole; return where the rest begins."""
        start, size = 0, len(data)
        while size - start >= HEADER_BYTES:
            length, epoch, ident, kind = HEADER.unpack_from(data, start)
            if length > self._limits.get(kind, -1):
                raise refusal(kind, length, self._limits)
            end = start + HEADER_BYTES + length
            if size < end:
                break
            frames.append(Frame(KINDS[kind], epoch, ident, bytes(data[start + HEADER_BYTES : end])))
            start = end
        return start
