"""The agent's end of the channel: frames in, bytes out, never blocking."""

import os

import wire
from poller import READ, WRITE

HIGH_WATER = 128 * 1024
# The port gives a page for each read and takes 32 KiB with each write. A vector makes many of them in one call.
_PAGE = 4096
_PAGES = 32
_WRITE = 32 * 1024
_VECTOR = 64


class Channel:
    """A non-blocking file descriptor that carries frames."""

    def __init__(self, fd, poller, handle):
        self._fd = fd
        self._poller = poller
        self._handle = handle
        self._decoder = wire.Decoder(wire.HOST_LIMITS)
        self._unsent = []
        self._waiting = 0
        self._events = READ
        self.closed = False
        self._received = bytearray(_PAGE * _PAGES)
        self._pages = [memoryview(self._received)[start : start + _PAGE] for start in range(0, _PAGE * _PAGES, _PAGE)]
        poller.add(fd, READ, self.exchange)

    def read_exactly(self, size):
        """Wait for so many bytes and return them; None if the host lets go instead. Nothing may wait to be sent."""
        os.set_blocking(self._fd, True)
        came = os.read(self._fd, size)
        while came and len(came) < size:
            more = os.read(self._fd, size - len(came))
            came = came + more if more else b""
        self.closed = not came
        return came or None

    def write(self, data):
        """Write a few bytes that the host waits for; from then on nothing blocks."""
        os.write(self._fd, data)
        os.set_blocking(self._fd, False)

    @property
    def is_full(self):
        """True while so much waits to be sent that producers should pause."""
        return self._waiting > HIGH_WATER

    def exchange(self, events):
        """Write what waits, read what came, have the complete frames handled."""
        if events & WRITE:
            self.flush()
        if not events & ~WRITE:
            return
        try:
            data = os.read(self._fd, _PAGE)
        except BlockingIOError:
            return
        self.closed = not data  # the host has let go: this machine has no owner any more
        self._feed(data)
        if len(data) == _PAGE:  # then there may be more
            try:
                length = os.readv(self._fd, self._pages)
            except BlockingIOError:
                return
            self._feed(memoryview(self._received)[:length])

    def _feed(self, data):
        for frame in self._decoder.feed(data):
            self._handle(frame)

    def send(self, header, payload=b""):
        """Take bytes to send; they leave when the loop has handled all that came, or when they are many.

        Large payloads are not copied: under software emulation each copy of a mebibyte takes some 3 ms.
        """
        self._waiting += len(header) + len(payload)
        if len(payload) >= _PAGE:
            view = memoryview(payload)
            self._unsent += [header, *(view[start : start + _WRITE] for start in range(0, len(view), _WRITE))]
        elif self._unsent and type(self._unsent[-1]) is bytearray:
            self._unsent[-1] += header + payload
        else:
            self._unsent.append(bytearray(header + payload))
        if self._waiting > wire.CHUNK_BYTES:
            self.flush()

    def flush(self):
        unsent = self._unsent
        try:
            while unsent:
                sent = os.write(self._fd, unsent[0]) if len(unsent) == 1 else os.writev(self._fd, unsent[:_VECTOR])
                self._waiting -= sent
                while unsent and sent >= len(unsent[0]):
                    sent -= len(unsent.pop(0))
                if sent:
                    unsent[0] = memoryview(unsent[0])[sent:]
        except BlockingIOError:
            pass
        wanted = READ | (WRITE if unsent else 0)
        if wanted != self._events:
            self._events = wanted
            self._poller.change(self._fd, wanted)
