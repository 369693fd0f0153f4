"""A server's end of its control streams: requests in, answers out, one after another."""

import os

import message
from message import Tag

ASK, ANSWER = 3, 4


class Control:
    """Blocking reads and writes of whole messages. Programs that the server starts do not inherit the descriptors."""

    def __init__(self):
        for fd in (ASK, ANSWER):
            os.set_inheritable(fd, False)

    def receive(self):
        """Return tag and body of the next message; raise `EOFError` when there will be none."""
        length, tag = message.decode_header(_read(message.HEADER_BYTES))
        return tag, _read(length)

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
        _write(message.encode(tag, body))


def _read(length):
    data = b""
    while len(data) < length:
        piece = os.read(ASK, length - len(data))
        if not piece:
            raise EOFError
        data = data + piece if data else piece
    return data


def _write(data):
    view = memoryview(data)
    while view:
        view = view[os.write(ANSWER, view) :]
