"""The agent's end of the channel: frames in, bytes out, never blocking."""

import os
import selectors

import wire

HIGH_WATER = 128 * 1024


class Channel:
    """A non-blocking file descriptor that carries frames."""

    def __init__(self, fd, selector):
        self._fd = fd
        self._selector = selector
        self._decoder = wire.Decoder(wire.HOST_LIMITS)
        self._unsent = bytearray()
        self._events = selectors.EVENT_READ
        self.closed = False
        selector.register(self, self._events)

    def fileno(self):
        return self._fd

    @property
    def is_full(self):
        """True while so much waits to be sent that producers should pause."""
        return len(self._unsent) > HIGH_WATER

    def exchange(self, events):
        """Write what waits, read what came, return the complete frames."""
        if events & selectors.EVENT_WRITE:
            self.flush()
        if not events & selectors.EVENT_READ:
            return []
        try:
            data = os.read(self._fd, 64 * 1024)
        except BlockingIOError:
            return []
        if not data:
            self.closed = True  # the host has let go: this machine has no owner any more
        return self._decoder.feed(data)

    def send(self, data):
        """Take bytes to send; they leave when the loop has handled all that came, or when they are many."""
        self._unsent += data
        if len(self._unsent) > wire.CHUNK_BYTES:
            self.flush()

    def flush(self):
        try:
            while self._unsent:
                sent = os.write(self._fd, self._unsent[: wire.CHUNK_BYTES])
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if wanted != self._events:
            self._events = wanted
            self._selector.modify(self, wanted)
