"""Control groups (version 2): one below `user` for each execution, so that a whole tree can be killed at once."""

import itertools
import os

ROOT = "/sys/fs/cgroup"
USER = f"{ROOT}/user"
RESERVE_BYTES = 40 * 1024 * 1024  # kernel, agent and the page cache that the agent itself needs
PIDS_MAX = 1024
PIDS_EACH = 768  # so that one fork bomb leaves the other executions something

_PERIOD = 100_000
_CPUS_MAX = 1_000_000  # more than there are, and less than the kernel refuses
_SIGKILL = 9

_left_over = []
_stock = []
_numbers = itertools.count(1)


def prepare():
    """Mark off the part of the machine that user code may have."""
    _write(f"{ROOT}/cgroup.subtree_control", "+memory +pids +cpu")
    os.makedirs(USER, exist_ok=True)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _write(f"{USER}/memory.max", str(max(total - RESERVE_BYTES, RESERVE_BYTES)))
    _write(f"{USER}/pids.max", str(PIDS_MAX))
    _write(f"{USER}/cgroup.subtree_control", "+memory +pids +cpu")


class Group:
    """The control group of one execution, taken from stock: making one is slow, so the next is made in idle time."""

    def __init__(self):
        self._path = None
        self._counters = ()

    def create(self):
        if not _stock:
            restock()
        self._path, self._counters = _stock.pop()

    def limit(self, limits):
        if limits.get("memory_bytes"):
            _write(f"{self._path}/memory.max", str(limits["memory_bytes"]))
        if limits.get("processes"):
            _write(f"{self._path}/pids.max", str(limits["processes"]))
        if limits.get("cpus"):
            _write(f"{self._path}/cpu.max", f"{max(1000, int(min(limits['cpus'], _CPUS_MAX) * _PERIOD))} {_PERIOD}")

    def adopt(self, pid):
        """Take a child in that is to enter by itself, too, before it runs anything of the user's."""
        try:
            _write(f"{self._path}/cgroup.procs", str(pid))
        except OSError:  # it has ended; or root in the guest has hidden the group, which the child will tell
            pass

    def enter(self):
        _write(f"{self._path}/cgroup.procs", "0")

    def signal(self, number):
        """Send a signal to every process below, whatever session it put itself into."""
        if number == _SIGKILL:
            _write(f"{self._path}/cgroup.kill", "1")
            return
        with open(f"{self._path}/cgroup.procs") as file:
            pids = [int(line) for line in file]
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def forks_refused(self):
        """Return how often a process could not be made because of a limit."""
        try:
            return int(_read(f"{self._path}/pids.events").split()[1])
        except OSError:
            return 0

    def memory(self):
        """Return the most memory that was in use at a time; None if root in the guest has removed the group."""
        return self._counter(0, int)

    def oom_kills(self):
        """Return the number of processes that the kernel killed for want of memory."""
        return self._counter(1, _oom_kills) or 0

    def _counter(self, which, parse):
        try:
            return parse(os.pread(self._counters[which], 4096, 0)) if self._counters else None
        except OSError:
            return None

    def remove(self):
        """Give the group up; return whether nothing lives in it any more."""
        for counter in self._counters:
            os.close(counter)
        self._counters = ()
        return self._path is None or _try_remove(self._path)


def _oom_kills(events):
    events = events.split()
    return int(events[events.index(b"oom_kill") + 1])


def is_left_over():
    """Return whether background processes of a program that has ended may live."""
    return bool(_left_over)


def restock():
    """Have one empty group ready, and try again to remove one that background processes lived on in."""
    if _left_over:
        _try_remove(_left_over.pop(0))
    if not _stock:
        path = f"{USER}/e{next(_numbers)}"
        os.mkdir(path)
        _write(f"{path}/pids.max", str(PIDS_EACH))
        # Open from now on, so that nobody who waits for the end of a program waits for two walks through this tree.
        counters = [os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("memory.peak", "memory.events")]
        _stock.append((path, counters))


def _try_remove(path):
    """Remove a group, or keep it for later when background processes still live in it; return whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:
        _left_over.append(path)
        return False
    return True


def _read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _write(path, text):
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
