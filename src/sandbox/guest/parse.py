"""JSON from a guest, decoded in small steps: between two of them the event loop goes on, and memory is bounded.

A decoder in C is ten times as fast, but it holds the interpreter until it is done, in whichever thread it runs, and it
has made all objects before they can be counted. `guest/answers.py` uses that one where little can come of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed does not know it
from typing import Any

from sandbox.message import MessageError, finite

MOST_DEPTH = 200
MOST_NAME = 64 * 1024
_STEP = 256
"""Tokens between two pauses."""
_TEXT_BYTES = 32 * 1024
_TOKEN_BYTES = 8 * 1024
"""The longest number, and the longest white space."""
_DONE_BYTES = 256 * 1024

_TOKEN = re.compile(
    rb"[ \t\n\r]*(?:([\[\]{}:,])|(\")|(-?(?:0|[1-9][0-9]*)((?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?))"
    rb"|(true|false|null|NaN|-?Infinity))"
)
_MARK, _QUOTE, _NUMBER, _FRACTION, _WORD = range(1, 6)
"""The groups of a token."""
_BACKSLASH = ord("\\")
_WORDS = {b"true": True, b"false": False}  # the others are None, as `message.decode_json` has it
_WIDE, _WIDEST = re.compile("[\u0100-\uffff]"), re.compile("[\U00010000-\U0010ffff]")


class Parser:
    """Decodes one JSON object. Iterate over `steps` to the end, then `fields` has it.

    Values are counted by the characters that set them apart. The steps raise `MessageError` for what is no object,
    and as soon as there are more than `most_values`, or their texts need more than `most_text` bytes of memory, or they
    are nested deeper than `MOST_DEPTH`, or a name has more than `MOST_NAME` characters. `body` is consumed.
    """

    def __init__(self, body: bytearray, most_values: int, most_text: int) -> None:
        self._body = body
        self._at = 0
        self._text_left = most_text
        self._scanned = 0
        self._tree = _Tree(most_values)

    @property
    def fields(self) -> dict[str, Any]:
        """What was decoded."""
        (fields,) = self._tree.document
        if type(fields) is not dict:
            raise MessageError(f"a message is a JSON {type(fields).__name__}, not an object")
        return fields

    def steps(self) -> Iterator[None]:
        """Decode, and pause whenever that has taken a moment."""
        tree, tokens = self._tree, 0
        while not tree.is_complete:
            tokens += 1
            if tokens % _STEP == 0 or self._scanned >= _TEXT_BYTES:
                yield from self._pause()
            token = _TOKEN.match(self._body, self._at, self._at + _TOKEN_BYTES)
            if token is None:
                raise MessageError("a message is not JSON: something without a meaning stands in it")
            self._at = token.end()
            kind = token.lastindex
            if kind == _MARK:
                tree.mark(token[_MARK])
            elif kind == _QUOTE:
                yield from self._read_text()
            elif kind == _NUMBER:
                self._scanned += len(token[_NUMBER])
                tree.value(_number(token[_NUMBER], token[_FRACTION]))
            else:
                tree.value(_WORDS.get(token[_WORD]))
        if self._body[self._at :].strip(b" \t\n\r"):
            raise MessageError("a message is not JSON: it goes on after its end")

    def _read_text(self) -> Iterator[None]:
        """Read a text whose first quotation mark was read."""
        pieces, length, width, is_last = [], 0, 1, False
        while not is_last:
            piece, is_last = self._read_piece()
            length, width = length + len(piece), max(width, _width(piece))
            if length * width > self._text_left:
                raise MessageError("a message has more text than is expected")
            pieces.append(piece)
            if not is_last:
                yield from self._pause()
        self._text_left -= length * width
        self._tree.text(pieces[0] if len(pieces) == 1 else "".join(pieces))

    def _read_piece(self) -> tuple[str, bool]:
        """Return the next piece of a text, and whether it is the last one."""
        body, at = self._body, self._at
        end = body.find(b'"', at, at + _TEXT_BYTES) + 1
        if not end or body[end - 2] == _BACKSLASH:  # that may not be its end
            end = at + _TEXT_BYTES
        window = body[at:end]
        self._scanned += len(window)
        try:
            try:
                piece, used = scanstring(window.decode("ascii"), 0)
            except ValueError:
                used = _before_escape(window)
                piece = scanstring(window[:used].decode("ascii") + '"', 0)[0]
            else:
                self._at += used
                return piece, True
        except ValueError as error:
            raise MessageError(f"a message is not JSON: {error}") from None
        if len(piece) > 1 and "\ud800" <= piece[-1] <= "\udbff":  # its other half is to come
            piece, used = piece[:-1], used - 6
        if not piece:
            raise MessageError("a message is not JSON: a text has no end")
        self._at += used
        return piece, False

    def _pause(self) -> Iterator[None]:
        self._scanned = 0
        self._forget()
        yield

    def _forget(self) -> None:
        """Give back the memory of what was decoded."""
        if self._at > _DONE_BYTES:
            del self._body[: self._at]
            self._at = 0


class _Tree:
    """What was decoded so far, and what may come next."""

    def __init__(self, most_values: int) -> None:
        self.document: list[Any] = []
        self._values_left = most_values
        self._inner: Any = self.document
        self._outer: list[Any] = []
        self._key: str | None = None
        self._keys: dict[str, str] = {}
        self._wanted = "value"
        """Or key, colon, comma."""
        self._may_end = False

    @property
    def is_complete(self) -> bool:
        return bool(self.document) and not self._outer

    def mark(self, mark: bytes) -> None:
        """Take a character that sets values apart."""
        if mark in b"]}":
            self._close(list if mark == b"]" else dict)
            return
        self._values_left -= 1
        if self._values_left < 0:
            raise MessageError("a message has more values than are expected")
        if mark == b"," and self._wanted == "comma":
            self._want("key" if type(self._inner) is dict else "value")
        elif mark == b":" and self._wanted == "colon":
            self._want("value")
        elif mark in b"[{":
            self._open([] if mark == b"[" else {})
        else:
            raise MessageError("a message is not JSON: a mark stands in the wrong place")

    def text(self, text: str) -> None:
        """Take a text: a value, or the name of one."""
        if self._wanted != "key":
            self.value(text)
        elif len(text) > MOST_NAME:
            raise MessageError(f"a message names a field with more than {MOST_NAME} characters")
        elif text in self._inner:
            raise MessageError("a message is not JSON: an object names a field twice")
        else:
            self._key = self._keys.setdefault(text, text)
            self._want("colon")

    def value(self, value: Any) -> None:
        """Take a value."""
        if self._wanted != "value":
            raise MessageError("a message is not JSON: a value stands in the wrong place")
        if type(self._inner) is dict:
            self._inner[self._key] = value
        else:
            self._inner.append(value)
        self._want("comma", may_end=True)

    def _open(self, value: list[Any] | dict[str, Any]) -> None:
        if len(self._outer) >= MOST_DEPTH:
            raise MessageError(f"a message is nested deeper than {MOST_DEPTH} levels")
        self.value(value)
        self._outer.append(self._inner)
        self._inner = value
        self._want("value" if type(value) is list else "key", may_end=True)

    def _close(self, kind: type) -> None:
        if type(self._inner) is not kind or not self._may_end:
            raise MessageError("a message is not JSON: something ends that has not begun")
        self._inner = self._outer.pop()
        self._want("comma", may_end=True)

    def _want(self, what: str, *, may_end: bool = False) -> None:
        self._wanted, self._may_end = what, may_end


def _number(text: bytes, fraction: bytes) -> float | None:
    try:
        return finite(text) if fraction else int(text)
    except ValueError:  # more digits than Python takes
        raise MessageError("a message is not JSON: a number has too many digits") from None


def _before_escape(window: bytearray) -> int:
    """Return how much of the beginning of a text can be read alone: an escape that is cut off at its end is not."""
    begin = window.rfind(b"\\", len(window) - 6)
    if begin < 0:
        return len(window)
    backslashes = begin + 1 - len(window[: begin + 1].rstrip(b"\\"))
    return begin if backslashes % 2 else len(window)


def _width(text: str) -> int:
    """Return how many bytes each character takes of a text that has such characters."""
    if text.isascii():
        return 1
    return 4 if _WIDEST.search(text) else 2 if _WIDE.search(text) else 1
