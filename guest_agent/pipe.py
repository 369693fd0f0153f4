"""The two directions of a pipe between the channel and a program, each with its credit."""

import fcntl
import os
import struct
import termios

import wire
from poller import READ, WRITE

_COUNT = struct.Struct("i")
_NO_COUNT = bytes(_COUNT.size)
_TERMINAL_BYTES = 128 * 1024  # more than the kernel holds of what was written to a terminal and not yet read


class Outlet:
    """What a program writes, on its way to the host."""

    def __init__(self, execution, kind, fd, is_terminal=False):
        self.left = None  # bytes that must have gone out before what waits in `execution.advance` may go on
        self._execution = execution
        self._agent = execution.agent
        self._kind = kind
        self._fd = fd
        self._is_terminal = is_terminal
        self._credit = wire.WINDOW_BYTES
        self._watched = False
        self.watch(True)

    def watch(self, wanted):
        if wanted != self._watched and self._fd is not None:
            self._watched = wanted
            if wanted:
                self._agent.poller.add(self._fd, READ, self.on_readable)
            else:
                self._agent.poller.drop(self._fd)

    def on_readable(self, _events):
        if self._execution.id is None:  # whatever that is, no request has asked for it
            self.watch(False)
        else:
            self.move()

    def grant(self, count):
        self._credit += count
        self.resume()

    def resume(self):
        """Go on where credit or room was missing: at an end there may be nothing to read, and so no event."""
        self.watch(True)
        if self.left:
            self.move()

    def mark(self):
        """Remember how much is in the pipe now: a writer that never stops must not hold up what waits for `left`.

        A terminal does not count what is still on its way through the kernel; but a read waits for that, so the first
        one that finds nothing ends it.
        """
        if self._fd is None:
            self.left = 0
        elif self._is_terminal:
            self.left = _TERMINAL_BYTES
        else:
            self.left = _COUNT.unpack(fcntl.ioctl(self._fd, termios.FIONREAD, _NO_COUNT))[0]

    def move(self):
        """Forward what is there, as far as credit and channel go."""
        while self._fd is not None:
            if not self._credit:
                self.watch(False)
                return
            if self._agent.channel.is_full:
                self.watch(False)
                self._agent.paused.append(self)
                return
            wanted = min(wire.CHUNK_BYTES, self._credit)
            try:
                data = os.read(self._fd, wanted)
            except BlockingIOError:
                self.left = self.left and 0
                break
            except OSError:  # a terminal whose last program is gone
                data = b""
            if not data:
                self._close()
                self.left = self.left and 0
                break
            self._credit -= len(data)
            if self.left:
                self.left = max(0, self.left - len(data))
            self._agent.send(self._kind, self._execution.id, data)
            if len(data) < wanted and not (self.left and self._is_terminal):
                break
        self._execution.advance()

    def release(self):
        """Give the pipe up. What background programs still write to it goes nowhere."""
        if self._fd is not None:
            self.watch(False)
            Drain(self._agent.poller, self._fd)
            self._fd = None

    def _close(self):
        self.watch(False)
        os.close(self._fd)
        self._fd = None


class Inlet:
    """What the host sends, on its way into a program."""

    def __init__(self, execution, kind, fd, is_terminal=False):
        self._execution = execution
        self._agent = execution.agent
        self._kind = kind
        self._fd = fd
        self._data = bytearray()
        self._ends = False
        self._owed = 0
        self._watched = False
        self._is_terminal = is_terminal
        self._is_in_line = False

    def put(self, data):
        self._is_in_line = not data.endswith(b"\n")
        if not self._data and self._fd is not None:
            try:
                written = os.write(self._fd, data)
            except OSError:  # full, or without a reader: `move` sees to it
                written = 0
            if written:
                self._owe(written)
                data = data[written:]
        if data:
            self._data += data
            if not self._watched:
                self.move()

    def end(self):
        """No more will come. A terminal stays open for writing: its end is a character, read as such at a line's begin.

        Within a line the first one only hands over what the line has so far.
        """
        if self._is_terminal and self._fd is not None:
            try:
                character = termios.tcgetattr(self._fd)[6][termios.VEOF]
            except OSError:  # nobody reads from it any more
                return
            characters = character * (2 if self._is_in_line else 1)
            self._owed -= len(characters)  # they are ours: the host has spent no credit on them
            self.put(characters)
            self._is_in_line = False
        else:
            self._ends = True
            if not self._data:
                self.close()

    def move(self):
        while self._data:
            try:
                written = os.write(self._fd, self._data) if self._fd is not None else len(self._data)
            except BlockingIOError:
                self._watch(True)
                return
            except OSError:  # the reader is gone: take the rest and drop it, as a pipe's writer would find out
                self.close()
                continue
            del self._data[:written]
            self._owe(written)
        self._watch(False)
        if self._ends:
            self.close()

    def close(self):
        if self._fd is not None:
            self._watch(False)
            os.close(self._fd)
            self._fd = None

    def _owe(self, count):
        self._owed += count
        if self._owed >= wire.GRANT_BYTES:
            self._agent.send(wire.Kind.WINDOW_IN, self._execution.id, wire.window(self._kind, self._owed))
            self._owed = 0

    def _watch(self, wanted):
        if wanted != self._watched and self._fd is not None:
            self._watched = wanted
            if wanted:
                self._agent.poller.add(self._fd, WRITE, self.on_writable)
            else:
                self._agent.poller.drop(self._fd)

    def on_writable(self, _events):
        self.move()


class Drain:
    """Reads and forgets what is left in a pipe, until its last writer closes it."""

    def __init__(self, poller, fd):
        self._poller = poller
        self._fd = fd
        poller.add(fd, READ, self)

    def __call__(self, _events):
        try:
            if os.read(self._fd, 64 * 1024):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._poller.drop(self._fd)
        os.close(self._fd)
