"""What has come from a guest and was not handled yet: frames, taken out one at a time."""

from __future__ import annotations

from sandbox.wire import CHUNK_BYTES, GUEST_LIMITS, HEADER, HEADER_BYTES, KINDS, OUTPUTS, Frame, refusal

_SMALL_BYTES = 1024
_MOST_PIECES = 200
"""Of this many small pieces one frame is made at most, which takes a fraction of a turn."""
_OUTPUTS = frozenset(map(int, OUTPUTS))


class Inbox:
    """Decodes as late as possible: a guest that sends much at once has not made us anything but its bytes.

    Small pieces of one output stream that follow one another come out as one frame. To a program's output that makes
    no difference, and the host handles a thousand bytes of a program that writes single ones as if it had written them
    at once.
    """

    def __init__(self) -> None:
        self.frames = self.bytes = 0
        """What has come out so far."""
        self._data = b""
        self._start = 0

    def put(self, data: bytes) -> None:
        """Take received bytes, when `next` has nothing more to give."""
        self._data = self._data + data if self._data else data

    def clear(self) -> None:
        self._data, self._start = b"", 0

    def next(self) -> Frame | None:
        """Return the next frame, or None if it has not arrived whole.

        Raise `FrameError` as soon as a header names an unknown kind or a length over the limit of its kind: before
        the payload has arrived, so a liar costs no memory.
        """
        data, start = self._data, self._start
        begin = start + HEADER_BYTES
        if begin > len(data):
            self._keep_rest()
            return None
        length, epoch, ident, kind = HEADER.unpack_from(data, start)
        if length > GUEST_LIMITS.get(kind, -1):
            raise refusal(kind, length, GUEST_LIMITS)
        end = begin + length
        if end > len(data):
            self._keep_rest()
            return None
        payload = data[begin:end]
        self._start = end
        self.frames += 1
        self.bytes += length
        if length < _SMALL_BYTES and kind in _OUTPUTS and payload:
            payload = self._with_more(payload, data[start + 4 : begin])
        return Frame(KINDS[kind], epoch, ident, payload)

    def _keep_rest(self) -> None:
        """Keep no more than the frame that has not arrived whole."""
        self._data, self._start = self._data[self._start :], 0

    def _with_more(self, payload: bytes, header: bytes) -> bytes:
        """Take the small pieces that follow with the same header, but for the length, and append them."""
        data, start = self._data, self._start
        pieces, total = [payload], len(payload)
        for _ in range(_MOST_PIECES):
            begin = start + HEADER_BYTES
            if data[start + 4 : begin] != header:
                break
            length = int.from_bytes(data[start : start + 4], "big")
            if not 0 < length < _SMALL_BYTES or begin + length > len(data) or total + length > CHUNK_BYTES:
                break
            start = begin + length
            total += length
            pieces.append(data[begin:start])
        self._start = start
        self.frames += len(pieces) - 1
        self.bytes += total - len(payload)
        return payload if len(pieces) == 1 else b"".join(pieces)
