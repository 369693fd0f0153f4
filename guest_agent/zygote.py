"""A Python interpreter that does nothing but fork: its children become the programs that the agent is asked for.

It never sees a request, so no child's memory holds another one's data. Each child reads its own request from a pipe.
The zygote tells the agent how its children end. The child in a snapshot is the agent's own, and so is each child of a
zygote that was killed.
"""

import _signal
import _socket
import gc
import os
import resource
import select
import sys

import child
import limits
import memory
import orders
import orphans
from hidden import hidden

_ORDERS, _NEWS = 3, 4


class Begin(BaseException):
    """Raised by the main module for `live` to be called."""


@hidden
def live(*_error):
    """Serve the agent; in a child, be the program. Never returns."""
    _prepare()
    child.be(_serve())


def _prepare():
    """Leave nothing of ours to be seen by children, and have ready what each of them needs."""
    sys.excepthook = sys.__excepthook__
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)
    child.prepare()
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits.OPEN_FILES_USUAL, limits.OPEN_FILES))
    _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT})  # until a child knows what to make of one
    gc.collect()
    gc.freeze()


def _serve():
    """Carry out orders until the agent is gone; return the request in each child."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, fileno=_ORDERS)
    sock.setblocking(True)
    deaths = orphans.open_deaths()
    poll = select.epoll()
    poll.register(sock.fileno(), select.EPOLLIN)
    poll.register(deaths, select.EPOLLIN)
    while True:
        for fd, _events in poll.poll():
            if fd == deaths:
                orphans.forget(deaths)
                _tell_deaths()
                continue
            order, descriptors = orders.receive(sock)
            if not order:
                os._exit(0)
            if order[:1] == orders.PREPARE:
                gc.collect()
                gc.freeze()
                memory.own()
                _tell(orders.PREPARED)
                continue
            if _fork(is_agents=orders.FOR_CLONES in order):
                sock.detach()  # these numbers become others'
                poll.close()
                return child.wait_for_request(order, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def _fork(*, is_agents):
    """Fork, and tell the agent the child's process id or the error; return whether this is the child.

    With `is_agents`, the child's parent is a process that ends at once, so that the agent becomes its parent and the
    kernel tells the agent of its end. A clone's first program then does not have to wake the zygote.
    """
    between = None
    try:
        if is_agents and (between := os.fork()):
            os.waitpid(between, 0)  # it has told
            return False
        pid = os.fork()
    except OSError as error:
        _tell(orders.NO_ROOM, 0, error.errno)
    else:
        if pid == 0:
            return True
        _tell(orders.BORN, pid)
    if between == 0:
        os._exit(0)
    return False


def _tell(kind, pid=0, number=0, cpu_us=0):
    os.write(_NEWS, orders.NEWS.pack(kind, pid, number, cpu_us))


def _tell_deaths():
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell(orders.DEAD, pid, status, int((usage.ru_utime + usage.ru_stime) * 1e6))
