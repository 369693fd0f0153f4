"""Messages of a server in the guest: what JSON forbids does not come in, and none costs much more than its bytes."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.message import (
    DATA_BYTES,
    HEADER_BYTES,
    JSON_BYTES,
    MessageDecoder,
    MessageError,
    Tag,
    decode_header,
    decode_json,
    encode,
    encode_json,
)
from sandbox.wire import FrameError
from sandbox.wire import decode_json as decode_frame_json

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
_BAD = {
    "nothing": b"",
    "two documents": b"{}{}",
    "a list": b"[]",
    "a number": b"1",
    "no UTF-8": b'{"a":"\xff"}',
    "a surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "a field twice": b'{"a":1,"a":2}',
    "a field twice, deep inside": b'{"x":[{"a":1,"a":2}]}',
    "depth": b'{"a":' * 60_000,
    "depth of lists": b"[" * 60_000,
    "a huge integer": b'{"a":' + b"9" * 5000 + b"}",
    "a control character": b'{"a":"\x00"}',
    "a half": b'{"a":',
}


def _messages(pieces: Iterable[bytes]) -> list[tuple[Tag, bytes | bytearray]]:
    decoder = MessageDecoder()
    messages = []
    for piece in pieces:
        decoder.feed(piece)
        while (message := decoder.next()) is not None:
            messages.append(message)
    return messages


@pytest.mark.parametrize("body", _BAD.values(), ids=_BAD)
def test_bad_json_is_refused(body: bytes) -> None:
    """Whatever is no single, unambiguous JSON object gives the one typed error, in messages and in frames."""
    with pytest.raises(MessageError):
        decode_json(body)
    with pytest.raises(FrameError):
        decode_frame_json(body)


@given(st.dictionaries(st.text(), _JSON, max_size=5))
def test_json_comes_through(fields: dict[str, object]) -> None:
    """What an honest server says arrives as it was meant, names that are no text included."""
    ((tag, body),) = _messages([encode_json(fields)])
    assert (tag, decode_json(body)) == (Tag.JSON, fields)
    assert decode_json(encode_json({"name": "\udc80"})[HEADER_BYTES:]) == {"name": "\udc80"}


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
def test_number_that_json_has_not_becomes_nothing(number: bytes) -> None:
    """A program may show NaN; what we return of it is still JSON. The agent itself never says such a thing."""
    assert decode_json(b'{"a":[' + number + b"]}") == {"a": [None]}
    if b"e" not in number:
        with pytest.raises(FrameError):
            decode_frame_json(b'{"a":' + number + b"}")


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 40))
def test_messages_survive_any_fragmentation(bodies: list[bytes], step: int) -> None:
    """However the bytes are cut, the same messages come out in the same order."""
    data = b"".join(encode(Tag.DATA, body) for body in bodies)
    messages = _messages([data[at : at + step] for at in range(0, len(data), step)])
    assert messages == [(Tag.DATA, body) for body in bodies]
    assert _messages([data]) == messages


@given(
    st.lists(st.sampled_from([0, 1, DATA_BYTES, DATA_BYTES + 1, 1024 * 1024]), max_size=5), st.integers(2**12, 2**20)
)
def test_long_messages_are_cut_where_they_end(lengths: list[int], step: int) -> None:
    """A body that is given away with its memory has nothing of what comes before or behind it."""
    bodies = [bytes([number]) * length for number, length in enumerate(lengths)]
    data = b"".join(encode(Tag.JSON, body) for body in bodies)
    messages = _messages([data[at : at + step] for at in range(0, len(data), step)])
    assert [bytes(body) for _, body in messages] == bodies


def test_what_nobody_has_asked_for_stays_as_it_came() -> None:
    """Fifty thousand messages of nothing cost their bytes, until somebody takes them one by one."""
    decoder, flood = MessageDecoder(), encode(Tag.END) * 50_000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        decoder.feed(flood)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2 * len(flood)
    assert decoder.next() == (Tag.END, b"")
    assert decoder.held == len(flood) - HEADER_BYTES


def test_a_header_is_judged_when_its_message_is_the_next() -> None:
    """A bound that is stated in between holds for what comes behind; the message before it is not lost."""
    decoder = MessageDecoder(10)
    decoder.feed(encode(Tag.DATA, b"x") + encode(Tag.JSON, b"{}" * 6))
    assert decoder.next() == (Tag.DATA, b"x")
    with pytest.raises(MessageError, match="limit here is 10"):
        decoder.next()


def test_numbers_and_limits_are_those_that_guests_know() -> None:
    """A template has the definition that it was baked with: whoever changes it changes the protocol's version."""
    assert {tag.name: int(tag) for tag in Tag} == {"JSON": 1, "DATA": 2, "END": 3}
    assert (JSON_BYTES, DATA_BYTES, HEADER_BYTES) == (16_777_216, 131_072, 5)


@pytest.mark.parametrize(("tag", "limit"), [(Tag.JSON, JSON_BYTES), (Tag.DATA, DATA_BYTES), (Tag.END, 0)])
def test_length_is_judged_by_the_header(tag: Tag, limit: int) -> None:
    """Up to the limit is waited for; one byte more is refused before it comes."""
    assert decode_header(struct.pack("!IB", limit, tag)) == (limit, tag)
    for length in (limit + 1, 2**31 - 1, 2**31, 2**32 - 1):
        with pytest.raises(MessageError, match="limit"):
            MessageDecoder().feed(struct.pack("!IB", length, tag))


@pytest.mark.parametrize("tag", sorted(set(range(256)) - set(Tag)))
def test_unknown_tag_is_refused(tag: int) -> None:
    """A message of no known kind ends the conversation with its server."""
    with pytest.raises(MessageError, match="unknown"):
        MessageDecoder().feed(struct.pack("!IB", 0, tag))


@given(st.binary(max_size=2000), st.integers(1, 100))
def test_noise_raises_nothing_else(noise: bytes, step: int) -> None:
    """Any bytes give messages or `MessageError`, never more than was fed."""
    decoder, size = MessageDecoder(), 0
    try:
        for at in range(0, len(noise), step):
            decoder.feed(noise[at : at + step])
            while (message := decoder.next()) is not None:
                size += HEADER_BYTES + len(message[1])
    except MessageError:
        pass
    assert size <= len(noise)
