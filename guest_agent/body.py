"""A forked child that is to become a program: its process, its control group and our ends of its pipes.

One is made ahead of its request, in idle time, because forking and leaving the agent behind take as long as all the
rest; it is in the snapshot, too, so that a clone's first program finds it.
"""

import errno
import fcntl
import os
import select
import signal
import struct
import termios

import cgroup
from child import AS_PREPARED, LOOK_AGAIN, SPENT, STAMPED, STAMPS, Become, Ends
from wire import Kind

_ORDER_BYTES = 60 * 1024  # what a pipe takes whole, so that a child that does not read holds nobody up
_READY_MS = 5000
# A child that was made ahead may hold copies of the agent's pages: it serves nobody who may hold less.
_OWN_BYTES = 32 * 1024 * 1024
_INPUTS = (Kind.STDIN, Kind.ASK)


class Body:
    """Made for a request, or, without one, to wait for one. Raises `OSError` when the guest has no room for it."""

    def __init__(self, request=None):
        self.group = cgroup.Group()
        self.terminal = None
        self.spent = 0.0
        self.ends = {}
        self._orders = self._ready = None
        theirs = Ends()
        try:
            if request is None:
                self._make_pipes(theirs, (Kind.STDIN, Kind.OUT, Kind.ERR, Kind.ASK, Kind.ANSWER))
                theirs.orders, self._orders = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                os.set_blocking(theirs.orders, True)
                self._ready, theirs.ready = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            else:
                stdio = () if request.get("pty") else (Kind.STDIN, Kind.OUT, Kind.ERR)
                if request.get("pty"):
                    self._open_terminal(theirs, *request["pty"])
                self._make_pipes(theirs, stdio + ((Kind.ASK, Kind.ANSWER) if request.get("control") else ()))
            self.group.create()
            if request is not None:
                self.group.limit(request.get("limits") or {})
            self.pid = os.fork()
        except OSError:
            theirs.close()
            self.close()
            self.group.remove()
            raise
        if self.pid == 0:
            raise Become(request, theirs, self.group)
        theirs.close()
        self.group.adopt(self.pid)  # a kill may come before the child has run at all

    def take(self, payload, request, is_alone):
        """Hand the request over; return False where this child cannot serve it. One that failed serves none.

        If it was alone since it was made, nobody has stopped it, and what it found out then still holds.
        """
        limits = request.get("limits") or {}
        if self.pid is None or len(payload) > _ORDER_BYTES or request.get("pty"):
            return False
        if (limits.get("memory_bytes") or _OWN_BYTES) < _OWN_BYTES:
            return False
        try:
            self.group.limit(limits)
            if not is_alone:
                os.kill(self.pid, signal.SIGCONT)
            os.write(self._orders, (AS_PREPARED if is_alone else LOOK_AGAIN) + payload)
        except OSError:
            os.close(self._orders)  # by which it ends
            self._orders = self.pid = None
            return False
        if told := self._told(SPENT.size):
            self.spent = SPENT.unpack(told)[0]
        os.close(self._orders)
        self._orders = None
        if not request.get("trace"):
            os.close(self._ready)
            self._ready = None
        return True

    def stamps(self):
        """Return when a child that was made ahead, for a request that is traced, did what."""
        if self._ready is None:
            return {}
        told = self._told(SPENT.size + STAMPS.size)[-STAMPS.size :]  # the first may have come late
        return dict(zip(STAMPED, STAMPS.unpack(told), strict=True)) if len(told) == STAMPS.size else {}

    def _told(self, size):
        try:
            return os.read(self._ready, size)
        except BlockingIOError:
            return b""

    def wait_ready(self):
        """Return when it has done all that can be done ahead; raise `OSError` if it does not get there.

        A snapshot of one that is on its way, or dead, would make every clone of it slow, and nobody would be told.
        """
        poll = select.poll()
        poll.register(self._ready, select.POLLIN)
        if not any(events & select.POLLIN for _, events in poll.poll(_READY_MS)):
            raise OSError(errno.ECHILD, "the child made ahead does not become ready")

    def resize(self, rows, columns):
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self):
        """Close our ends, as far as nobody took them. A child that waits ends by that."""
        for fd in (*self.ends.values(), self._orders, self._ready, self.terminal):
            if fd is not None:
                os.close(fd)
        self.ends.clear()
        self._orders = self._ready = self.terminal = None

    def _make_pipes(self, theirs, kinds):
        for kind in kinds:
            read, write = os.pipe2(os.O_CLOEXEC)
            self.ends[kind] = write if kind in _INPUTS else read
            os.set_blocking(self.ends[kind], False)
            theirs.stdio.append(read if kind in _INPUTS else write)

    def _open_terminal(self, theirs, rows, columns):
        self.terminal, slave = os.openpty()
        theirs.stdio += [slave] * 3
        self.resize(rows, columns)
        os.set_blocking(self.terminal, False)
        self.ends[Kind.STDIN], self.ends[Kind.OUT] = os.dup(self.terminal), os.dup(self.terminal)
