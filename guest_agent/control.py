"""A server's end of its control streams: requests in, answers out, one after another."""

import errno
import fcntl
import os
import select

import message
from message import Tag

ASK, ANSWER = 3, 4
_SMALL = 4096


class Control:
    """Blocking reads and writes of whole messages. Programs that the server starts do not inherit the descriptors."""

    def __init__(self):
        for fd in (ASK, ANSWER):
            os.set_inheritable(fd, False)

    def receive(self):
        """Return tag and body of the next message; raise `EOFError` when there will be none."""
        length, tag = message.decode_header(_read(message.HEADER_BYTES))
        return tag, _read(length)

    def is_asked(self):
        """Return whether something has come that nobody has received."""
        return bool(select.select([ASK], [], [], 0)[0])

    def receive_into(self, fd):
        """Move the next piece of content into a file and return True; return False at its end.

        The kernel moves it, except into files that are appended to: copies cost dearly under software emulation.
        """
        length, tag = message.decode_header(_read(message.HEADER_BYTES))
        if tag is Tag.END:
            return False
        if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
            try:
                while length:
                    moved = os.splice(ASK, fd, length)
                    if not moved:
                        raise EOFError
                    length -= moved
            except OSError as error:
                if error.errno != errno.EINVAL:  # that is a file of the kernel's, which takes writes only
                    _read(length)  # the rest of a piece that could not be written
                    raise
        body = _read(length)
        while body:
            body = body[os.write(fd, body) :]
        return True

    def requests(self):
        """Yield the fields of every request."""
        while True:
            try:
                tag, body = self.receive()
            except EOFError:
                return
            if tag is Tag.JSON:
                yield message.decode_json(body)

    def send_json(self, fields):
        _write(message.encode_json(fields))

    def send(self, tag, body=b""):
        _write(message.encode_header(tag, len(body)), body)


def _read(length):
    if length <= _SMALL:
        data = os.read(ASK, length) if length else b""
        if len(data) == length:
            return data
    body = bytearray(length)
    view = memoryview(body)
    done = 0
    if length <= _SMALL:
        body[: len(data)] = data
        done = len(data)
    while done < length:
        piece = os.readv(ASK, [view[done:]])
        if not piece:
            raise EOFError
        done += piece
    return body


def _write(*pieces):
    while True:
        written = os.writev(ANSWER, pieces)
        while pieces and written >= len(pieces[0]):
            written -= len(pieces[0])
            pieces = pieces[1:]
        if not pieces:
            return
        pieces = (memoryview(pieces[0])[written:], *pieces[1:])
