"""The decoder: every honest frame comes through, every liar is stopped before it costs memory."""

from __future__ import annotations

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
    decode_window,
    encode,
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


@pytest.mark.parametrize("payload", [b"", b"[]", b"1", b"\xff", b"[" * 60_000, b'{"a":'])
def test_json_that_is_no_object_is_refused(payload: bytes) -> None:
    """Depth, type and encoding are checked."""
    with pytest.raises(FrameError):
        decode_json(payload)
