"""The decoder: every honest frame comes through, every liar is stopped before it costs memory."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.wire import (
    CHUNK_BYTES,
    GUEST_LIMITS,
    HEADER_BYTES,
    HOST_LIMITS,
    INPUTS,
    WINDOW_BYTES,
    Decoder,
    FrameError,
    Kind,
    decode_json,
    decode_pid,
    decode_size,
    decode_window,
    encode,
    encode_header,
    encode_json,
    pid,
    size,
    window,
)

U32 = st.integers(0, 2**32 - 1)


@given(U32, U32, st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 50))
def test_frames_survive_any_fragmentation(epoch: int, ident: int, payloads: list[bytes], step: int) -> None:
    """However the bytes are cut, the same frames come out in the same order."""
    data = b"".join(encode(Kind.OUT, epoch, ident, payload) for payload in payloads)
    decoder = Decoder(GUEST_LIMITS)
    frames = [frame for start in range(0, len(data), step) for frame in decoder.feed(data[start : start + step])]
    assert [(frame.epoch, frame.id, frame.payload) for frame in frames] == [(epoch, ident, p) for p in payloads]


@pytest.mark.parametrize("kind", GUEST_LIMITS)
@pytest.mark.parametrize("excess", [1, 2**16, 2**31, 2**32 - 1])
def test_length_over_the_limit_is_refused_by_its_header(kind: int, excess: int) -> None:
    """13 bytes suffice for the verdict; the payload is never awaited."""
    length = min(GUEST_LIMITS[kind] + excess, 2**32 - 1)
    with pytest.raises(FrameError, match="limit"):
        Decoder(GUEST_LIMITS).feed(struct.pack("!IIIB", length, 0, 0, kind))


@pytest.mark.parametrize("kind", sorted({0, 99, 255} | set(HOST_LIMITS)))
def test_kind_of_the_wrong_direction_is_refused(kind: int) -> None:
    """The guest cannot speak with the host's voice."""
    with pytest.raises(FrameError, match="direction"):
        Decoder(GUEST_LIMITS).feed(struct.pack("!IIIB", 0, 0, 0, kind))


@given(st.binary(min_size=HEADER_BYTES, max_size=4096))
def test_noise_never_raises_anything_else(noise: bytes) -> None:
    """Random bytes give frames or `FrameError`, and the decoder holds no more than it was fed."""
    decoder = Decoder(GUEST_LIMITS)
    try:
        frames = decoder.feed(noise)
    except FrameError:
        return
    assert sum(HEADER_BYTES + len(frame.payload) for frame in frames) <= len(noise)


def test_unfinished_frame_is_bounded() -> None:
    """A frame of the largest allowed length is waited for; its bytes are all that is held."""
    decoder = Decoder(GUEST_LIMITS)
    data = encode(Kind.OUT, 1, 1, bytes(CHUNK_BYTES))
    assert decoder.feed(data[:-1]) == []
    assert len(decoder.feed(data[-1:])) == 1


@pytest.mark.parametrize("count", [0, WINDOW_BYTES + 1, 2**32 - 1])
def test_absurd_windows_are_refused(count: int) -> None:
    """Credit is at least one byte and at most one window, for a stream that flows in this direction."""
    with pytest.raises(FrameError):
        decode_window(window(Kind.STDIN, count), INPUTS)
    with pytest.raises(FrameError):
        decode_window(window(Kind.OUT, 7), INPUTS)
    with pytest.raises(FrameError):
        decode_window(b"", INPUTS)
    frame = Decoder(GUEST_LIMITS).feed(encode(Kind.WINDOW_IN, 1, 1, window(Kind.STDIN, 7)))[0]
    assert decode_window(frame.payload, INPUTS) == (Kind.STDIN, 7)
    assert [decode_window(window(Kind.ASK, most), INPUTS)[1] for most in (1, WINDOW_BYTES)] == [1, WINDOW_BYTES]


def test_sizes_and_process_ids_come_through() -> None:
    """Frames of fixed length: what was packed is unpacked, any other length is refused."""
    assert decode_size(size(24, 65_535)) == (24, 65_535)
    assert decode_pid(pid(2**32 - 1)) == 2**32 - 1
    for decode, whole in ((decode_size, size(24, 80)), (decode_pid, pid(7))):
        for payload in (b"", whole[:-1], whole + b"\0"):
            with pytest.raises(FrameError, match="instead of 4"):
                decode(payload)


def test_frame_of_the_whole_machine_has_no_execution() -> None:
    """A frame that names no execution has id 0; header and payload may be sent apart."""
    frame = Decoder(GUEST_LIMITS).feed(encode(Kind.OUT, 1, payload=b"x"))[0]
    assert frame.id == 0
    assert encode_header(Kind.OUT, 1, 2, 1) + b"x" == encode(Kind.OUT, 1, 2, b"x")


@pytest.mark.parametrize("payload", [b'{"a":1,"b":{"c":2}}', b"{}"])
def test_object_of_distinct_fields_is_taken(payload: bytes) -> None:
    """Nothing of it is lost, and it is made anew each time."""
    assert decode_json(payload) == json.loads(payload)
    assert decode_json(encode_json(Kind.START, 1, 2, json.loads(payload))[HEADER_BYTES:]) == json.loads(payload)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_has_not_are_never_sent(number: float) -> None:
    """The other end would refuse the whole frame."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json(Kind.START, 1, 2, {"a": [number]})


def test_bytes_of_whole_frames_are_not_kept() -> None:
    """A decoder between two frames holds nothing; one within a frame holds that."""
    decoder = Decoder(GUEST_LIMITS)
    whole = encode(Kind.OUT, 1, 2, b"abc")
    assert [len(decoder.feed(whole)), len(decoder._buffer)] == [1, 0]
    assert [len(decoder.feed(whole + whole[:4])), len(decoder._buffer)] == [1, 4]
    assert [len(decoder.feed(whole[4:])), len(decoder._buffer)] == [1, 0]


@pytest.mark.parametrize("payload", [b"", b"[]", b"1", b"\xff", b"[" * 60_000, b'{"a":'])
def test_json_that_is_no_object_is_refused(payload: bytes) -> None:
    """Depth, type and encoding are checked."""
    with pytest.raises(FrameError):
        decode_json(payload)
