"""The agent's end of the zygote: has children made, ahead of their requests too, and hears how each of them ended.

The zygote is a process of its own because whatever is forked from a process has a copy of its memory: the agent's
holds the requests, environments and files of all executions, the zygote's nothing but Python.
"""

import _signal
import errno
import marshal
import os
import select
from collections import deque

import orders
from cgroup import Group
from orders import SPENT, STAMPED, STAMPS
from poller import READ, WRITE
from script import Script

_PYTHON = "/usr/bin/python3"
_MAIN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "zygote_main.py")
_ORDERS, _NEWS = 3, 4
"""The zygote's ends of both ways to it; `boot.protect_self` keeps these numbers free."""
_READY_MS = 30_000


class Nursery:
    """Starts the zygote when it is first needed, and again should root in the guest have killed it."""

    def __init__(self, agent, environment):
        self._agent = agent
        self._environment = environment
        self._sock = None
        self._news = -1
        self._expected = deque()  # bodies whose birth was ordered, in that order
        self._living = {}  # process id -> body
        self._is_prepared = False
        self.pid = None

    def start(self):
        """Start the zygote. Raises `OSError` when the guest has no room for it."""
        ours, theirs = orders.pair()
        try:
            news, zygotes_news = os.pipe2(os.O_CLOEXEC)
        except OSError:
            ours.close()
            theirs.close()
            raise
        try:
            ends = (theirs.fileno(), _ORDERS), (zygotes_news, _NEWS)
            actions = [(os.POSIX_SPAWN_DUP2, fd, target) for fd, target in ends]
            environment = {**self._environment, "LD_BIND_NOW": "1"}  # looked up before the snapshot, not in each clone
            self.pid = os.posix_spawn(
                _PYTHON, ["python3", "-u", _MAIN], environment, file_actions=actions, setsigmask=()
            )
        except OSError:
            ours.close()
            os.close(news)
            raise
        finally:
            theirs.close()
            os.close(zygotes_news)
        self._sock, self._news = ours, news
        self._agent.poller.add(news, READ, self._on_news)

    def have_made(self, body, *, for_clones=False):
        """Order a child for this body, which hears what comes of it. If this raises `OSError`, nothing is left."""
        kind = orders.FORK if body.streams.terminal is None else orders.FORK_ON_TERMINAL
        try:
            if self._sock is None:
                self.start()
            orders.send(self._sock, kind + orders.FOR_CLONES * for_clones, body.theirs())
        except OSError:
            body.abandon()
            raise
        self._expected.append(body)

    def prepare(self):
        """Have the zygote do what every clone then finds done."""
        if self._sock is None:
            self.start()
        self._is_prepared = False
        orders.send(self._sock, orders.PREPARE)
        self.wait(lambda: self._is_prepared)

    def wait_born(self, body):
        """Return when a child that was ordered is there; raise `OSError` if it does not come to be."""
        self.wait(lambda: body.pid is not None or body.error is not None)
        if body.error is not None:
            raise OSError(body.error, os.strerror(body.error))

    def wait(self, is_so):
        """Hear the zygote until something is so; raise `OSError` if it has nothing more to say."""
        poll = select.poll()
        poll.register(self._news, select.POLLIN)
        while not is_so():
            if not poll.poll(_READY_MS):
                raise OSError(errno.ETIMEDOUT, "the zygote does not answer")
            self._on_news(READ)
            if self._sock is None:
                raise OSError(errno.ECHILD, "the zygote has ended")

    def died(self):
        """The zygote is dead: what was ordered of it will not come; its children are the agent's now."""
        if self._sock is not None:
            self._agent.poller.drop(self._news)
            os.close(self._news)
            self._sock.close()
            self._sock = None
        self.pid = None
        expected, self._expected = self._expected, deque()
        for body in expected:
            body.failed(errno.ECHILD)

    def child_died(self, pid, status, cpu_us):
        """Tell the body of a child that it has ended; return whether it was one of ours."""
        body = self._living.pop(pid, None)
        if body is not None:
            body.died(status, cpu_us)
        return body is not None

    def _on_news(self, _events):
        try:
            data = os.read(self._news, orders.NEWS.size)
        except OSError:
            data = b""
        if len(data) != orders.NEWS.size:
            self.died()
            return
        kind, pid, number, cpu_us = orders.NEWS.unpack(data)
        if kind == orders.BORN:
            body = self._expected.popleft()
            self._living[pid] = body
            body.born(pid)
        elif kind == orders.NO_ROOM:
            self._expected.popleft().failed(number)
        elif kind == orders.DEAD:
            self.child_died(pid, number, cpu_us)
        else:
            self._is_prepared = True


class Body:
    """A child of the zygote that is to become a program: its group, its streams, and how it gets its request.

    `on_born()` is called when the process is there, `on_failed(errno)` if it cannot be made, `on_died(status, cpu_us)`
    when it has ended, with the processor time of its program.
    """

    def __init__(self, agent, streams, group):
        self.pid = self.error = None
        self.streams = streams
        self.group = group
        self.on_born = self.on_failed = self.on_died = lambda *_: None
        self._agent = agent
        self._spent_us = 0
        self._unsent = b""
        self._child_orders, self._orders = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ready, self._child_ready = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._child_orders, True)

    def theirs(self):
        """Return the child's descriptors in the order in which it takes them."""
        return [*self.streams.theirs, self._child_orders, self._child_ready, self.group.procs]

    def born(self, pid):
        self.pid = pid
        self._let_go()
        self.group.adopt(pid)  # a kill may come before the child has run at all
        self.on_born()

    def failed(self, number):
        self.error = number
        self._let_go()
        self.on_failed(number)

    def abandon(self):
        """There will be no child."""
        self._let_go()
        self.close()
        self.group.remove()

    def limit(self, limits):
        """Bound what the child may take. If this raises `OSError`, nothing is left."""
        try:
            self.group.limit(limits)
        except OSError:
            self.abandon()
            raise

    def died(self, status, cpu_us):
        self.on_died(status, max(0, cpu_us - self._spent_us))

    def _let_go(self):
        self.streams.close_theirs()
        for fd in (self._child_orders, self._child_ready):
            os.close(fd)

    def is_alive(self):
        """Return whether the child still holds its end of the pipe that it gets its request by."""
        poll = select.poll()
        poll.register(self._orders, select.POLLOUT)
        return not any(events & select.POLLERR for _, events in poll.poll(0))

    def give(self, request, is_alone):
        """Hand the request over. If the child was alone since it was made, what it found out then still holds."""
        if not is_alone:  # root in the guest may have stopped it
            os.kill(self.pid, _signal.SIGCONT)
        if told := self._told(SPENT.size):
            self._spent_us = int(SPENT.unpack(told)[0] * 1e6)
        data = (orders.AS_PREPARED if is_alone else orders.LOOK_AGAIN) + marshal.dumps(request)
        self._unsent = orders.LENGTH.pack(orders.LENGTH.size + len(data)) + data
        self._send_on(WRITE)

    def _send_on(self, events):
        is_watched = events is not WRITE
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._orders, self._unsent) :]
        except BlockingIOError:
            if not is_watched:
                self._agent.poller.add(self._orders, WRITE, self._send_on)
            return
        except OSError:  # it has ended, which it tells itself
            self._unsent = b""
        if is_watched:
            self._agent.poller.drop(self._orders)
        os.close(self._orders)
        self._orders = None

    def told(self, *, is_traced):
        """Return when a child that is traced did what, and the script that it has placed, if it has one."""
        said = self._told(orders.REQUEST_BYTES)
        if not self._spent_us:  # then that came late
            said = said[SPENT.size :]
        stamps, placed = {}, None
        if is_traced and len(said) >= STAMPS.size:
            stamps = dict(zip(STAMPED, STAMPS.unpack_from(said), strict=True))
            said = said[STAMPS.size :]
        if len(said) >= orders.PLACED.size:
            is_made, length = orders.PLACED.unpack_from(said)
            paths = said[orders.PLACED.size :]
            path, aside = (part.decode("utf-8", "surrogateescape") for part in (paths[:length], paths[length:]))
            placed = Script(path, is_made, aside)
        return stamps, placed

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

    def close(self):
        """Let go of its orders; a child that waits for them ends by that."""
        if self._unsent:
            self._agent.poller.drop(self._orders)
            self._unsent = b""
        for fd in (self._orders, self._ready):
            if fd is not None:
                os.close(fd)
        self._orders = self._ready = None
        self.streams.close()


def make_body(agent, streams):
    """Return a body with a group of its own; raise `OSError`, and leave nothing, when there is no room for it."""
    group = Group()
    try:
        group.create()
        return Body(agent, streams, group)
    except OSError:
        streams.close()
        group.remove()
        raise
