"""One execution: a child process, its three pipes, their credit, its control group and its end."""

import os
import selectors
import time

import cgroup
import wire
from child import Become
from wire import Kind

WINDOW_KINDS = {Kind.WINDOW_OUT: Kind.OUT, Kind.WINDOW_ERR: Kind.ERR}


class Execution:
    """Owned by the agent from START until EXITED is sent; afterwards its pipes only drain."""

    def __init__(self, agent, ident):
        self.agent = agent
        self.id = ident
        self.pid = None
        self.started = time.monotonic()
        self._stdin = None
        self._stdin_data = bytearray()
        self._stdin_eof = False
        self._streams = {}  # kind -> file descriptor
        self._credit = {Kind.OUT: wire.WINDOW_BYTES, Kind.ERR: wire.WINDOW_BYTES}
        self._idle = set()  # kinds whose pipe was found empty
        self._registered = {}  # file descriptor -> events
        self._status = None
        self._usage = None
        self.group = cgroup.Group()

    def start(self, request):
        """Fork. The child leaves by raising `Become`, so that none of the agent's frames outlive it."""
        stdin_read, self._stdin = os.pipe2(os.O_CLOEXEC)
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        self._streams = {Kind.OUT: out_read, Kind.ERR: err_read}
        for fd in (self._stdin, out_read, err_read):
            os.set_blocking(fd, False)
        try:
            self.group.create(request.get("limits") or {})
            pid = os.fork()
        except OSError as error:
            os.write(err_write, f"sandbox: cannot start a process in the guest: {error.strerror}\n".encode())
            self._status, self._usage = 126 << 8, None
            pid = -1
        if pid == 0:
            raise Become(request, (stdin_read, out_write, err_write), self.group)
        for fd in (stdin_read, out_write, err_write):
            os.close(fd)
        self.pid = pid

    def handle(self, frame):
        if frame.kind is Kind.STDIN:
            self._stdin_data += frame.payload
        elif frame.kind is Kind.STDIN_EOF:
            self._stdin_eof = True
        elif frame.kind in WINDOW_KINDS:
            self._credit[WINDOW_KINDS[frame.kind]] += wire.decode_count(frame.payload)
        elif frame.kind is Kind.KILL:
            self.kill(wire.decode_json(frame.payload))

    def kill(self, request):
        """Send a signal to the child's process group, or kill every process in the control group."""
        if request.get("tree"):
            self.group.kill()
        elif self._status is None:
            try:
                os.killpg(self.pid, int(request["signal"]))
            except ProcessLookupError:
                pass

    def exited(self, status, usage):
        self._status, self._usage = status, usage
        self._idle.clear()  # what the child wrote before it died is in the pipes: look once more

    def pump(self):
        """Move what can be moved, then say which descriptors are worth waiting for."""
        self._feed_stdin()
        for kind, fd in list(self._streams.items()):
            self._read(kind, fd)
        if self._status is not None and all(kind in self._idle for kind in self._streams):
            self._finish()
            return
        for kind, fd in self._streams.items():
            self._watch(fd, selectors.EVENT_READ if self._credit[kind] and not self.agent.channel.is_full else 0)
        if self._stdin is not None:
            self._watch(self._stdin, selectors.EVENT_WRITE if self._stdin_data else 0)

    def _feed_stdin(self):
        consumed = 0
        while self._stdin_data:
            try:
                written = os.write(self._stdin, self._stdin_data) if self._stdin is not None else len(self._stdin_data)
            except BlockingIOError:
                break
            except OSError:  # the reader is gone: take the rest and drop it, as a pipe's writer would find out
                self._close_stdin()
                continue
            del self._stdin_data[:written]
            consumed += written
        if consumed and self._status is None:
            self.agent.channel.send(wire.encode_count(Kind.WINDOW_IN, self.agent.epoch, self.id, consumed))
        if self._stdin_eof and not self._stdin_data:
            self._close_stdin()

    def _close_stdin(self):
        if self._stdin is not None:
            self._watch(self._stdin, 0)
            os.close(self._stdin)
            self._stdin = None

    def _read(self, kind, fd):
        while self._credit[kind] and not self.agent.channel.is_full:
            try:
                data = os.read(fd, min(wire.CHUNK_BYTES, self._credit[kind]))
            except BlockingIOError:
                self._idle.add(kind)
                return
            if not data:
                self._watch(fd, 0)
                os.close(fd)
                del self._streams[kind]
                return
            self._idle.discard(kind)
            self._credit[kind] -= len(data)
            self.agent.send(kind, self.id, data)

    def _watch(self, fd, events):
        if self._registered.get(fd, 0) == events:
            return
        selector = self.agent.selector
        if not events:
            selector.unregister(fd)
            del self._registered[fd]
            return
        if fd in self._registered:
            selector.modify(fd, events, _nothing)
        else:
            selector.register(fd, events, _nothing)
        self._registered[fd] = events

    def _finish(self):
        """Report the end. A background child may still hold the pipes: they are emptied into nowhere."""
        self._close_stdin()
        for fd in self._streams.values():
            self._watch(fd, 0)
            Drain(self.agent.selector, fd)
        del self.agent.executions[self.id]
        end = {
            "code": os.WEXITSTATUS(self._status) if os.WIFEXITED(self._status) else None,
            "signal": os.WTERMSIG(self._status) if os.WIFSIGNALED(self._status) else None,
            "wall_s": time.monotonic() - self.started,
        }
        if self._usage is not None:
            end["cpu_s"] = self._usage.ru_utime + self._usage.ru_stime
        end.update(self.group.report())
        self.agent.send_json(Kind.EXITED, self.id, end)
        self.group.remove()  # nobody waits for this any more
        cgroup.restock()


class Drain:
    """Reads and forgets what is left in a pipe, until its last writer closes it."""

    def __init__(self, selector, fd):
        self._selector = selector
        self._fd = fd
        selector.register(fd, selectors.EVENT_READ, self)

    def __call__(self):
        try:
            if os.read(self._fd, 64 * 1024):
                return
        except BlockingIOError:
            return
        self._selector.unregister(self._fd)
        os.close(self._fd)


def _nothing():
    """The work is done in `pump`, which runs after every wake-up."""
