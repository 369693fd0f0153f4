"""Control groups (version 2): one below `user` for each execution, so that a whole tree can be killed at once."""

import itertools
import os

from limits import PIDS_MAX

ROOT = "/sys/fs/cgroup"
USER = f"{ROOT}/user"
RESERVE_BYTES = 40 * 1024 * 1024  # kernel, agent and the page cache that the agent itself needs
SWAP_FACTS = "/sys/block/zram0/mm_stat"
PIDS_EACH = 768  # so that one fork bomb leaves the other executions something

_PERIOD = 100_000
_CPUS_MAX = 1_000_000  # more than there are, and less than the kernel refuses
_SIGKILL = 9

_stock = []
_numbers = itertools.count(1)
_home = -1
_all_bytes = 0


def prepare():
    """Mark off the part of the machine that user code may have."""
    global _home, _all_bytes  # noqa: PLW0603 - there is one of each
    _home = os.open(f"{ROOT}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    _write(f"{ROOT}/cgroup.subtree_control", "+memory +pids +cpu")
    os.makedirs(USER, exist_ok=True)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # With room for what is compressed of theirs, the programs that want too much are those that compress. Without, the
    # whole guest would run short, and the agent would compress for them: for so long that the host gives up on it.
    _all_bytes = max(total - RESERVE_BYTES - _compressed_bytes(), RESERVE_BYTES)
    _write(f"{USER}/memory.max", str(_all_bytes))
    _write(f"{USER}/pids.max", str(PIDS_MAX))
    _write(f"{USER}/cgroup.subtree_control", "+memory +pids +cpu")


def _compressed_bytes():
    """Return the most memory that compressed pages may take; none where the kernel does not compress."""
    try:
        return int(_read(SWAP_FACTS).split()[3])
    except FileNotFoundError:
        return 0


class Group:
    """The control group of one execution, taken from stock: making one is slow, so the next is made in idle time."""

    def __init__(self):
        self.procs = None
        """The kernel's file by which a process enters."""
        self._path = None
        self._counters = ()

    def create(self):
        if not _stock:
            restock()
        self._path, self.procs, self._counters = _stock.pop()

    def limit(self, limits):
        if limits.get("memory_bytes"):
            # One bound for all that it takes: what may lie compressed is what could not lie there otherwise.
            _write(f"{self._path}/memory.max", str(min(limits["memory_bytes"], _all_bytes)))
            _write_if_there(f"{self._path}/memory.swap.max", str(max(0, limits["memory_bytes"] - _all_bytes)))
        if limits.get("processes"):
            _write(f"{self._path}/pids.max", str(limits["processes"]))
        if limits.get("cpus"):
            _write(f"{self._path}/cpu.max", f"{max(1000, int(min(limits['cpus'], _CPUS_MAX) * _PERIOD))} {_PERIOD}")

    def adopt(self, pid):
        """Take a child in that is to enter by itself, too, before it runs anything of the user's."""
        try:
            os.write(self.procs, b"%d" % pid)
        except OSError:  # it has ended
            pass

    def __enter__(self):
        """Be in it for the length of a `with`: whatever this process starts meanwhile stays there."""
        os.write(self.procs, b"0")

    def __exit__(self, *_error):
        os.write(_home, b"0")

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
        """Remove the group; return whether it is gone. It is not while background processes live in it."""
        for fd in (*self._counters, self.procs):
            if fd is not None:
                os.close(fd)
        self._counters, self.procs = (), None
        if self._path is not None:
            try:
                os.rmdir(self._path)
            except FileNotFoundError:
                pass
            except OSError:
                return False
        return True


def _oom_kills(events):
    events = events.split()
    return int(events[events.index(b"oom_kill") + 1])


def restock():
    """Have one empty group ready."""
    if not _stock:
        path = f"{USER}/e{next(_numbers)}"
        os.mkdir(path)
        _write(f"{path}/pids.max", str(PIDS_EACH))
        # Open from now on, so that nobody who waits for a program waits for walks through this tree.
        procs = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        counters = [os.open(f"{path}/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("memory.peak", "memory.events")]
        _stock.append((path, procs, counters))


def _read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _write_if_there(path, text):
    """Write to a file that a kernel without the feature lacks."""
    try:
        _write(path, text)
    except FileNotFoundError:
        pass


def _write(path, text):
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
