"""A QEMU process that is never mistaken for another: every act goes through its pidfd."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio

from sandbox.inherited import keep_from_children
from sandbox.proc import proc_text

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
_adopting = threading.Lock()
_adopters = 0
_leavers = 0
_was_subreaper = 0


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Make descendants that lose their parent within the context our children, as QEMU does when it is started.

    So a dead QEMU is reaped at once and not when init finds time: libvirt takes a zombie for a living process and waits
    up to 1.8 s for it. Only while a VM is started: what the application's other children leave behind goes to init,
    as it would without us, and does not become a zombie that nobody collects.
    """
    _count(adopters=1)
    try:
        yield
    finally:
        _count(adopters=-1)


@contextmanager
def leaving_orphans() -> Iterator[None]:
    """Leave descendants that lose their parent within the context to init, even while VMs are started elsewhere.

    A QEMU that is started meanwhile is init's child, too: it is reaped later, and its exit status is not known.
    """
    _count(leavers=1)
    try:
        yield
    finally:
        _count(leavers=-1)


def _count(*, adopters: int = 0, leavers: int = 0) -> None:
    global _adopters, _leavers, _was_subreaper  # noqa: PLW0603 - an attribute of the process
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    with _adopting:
        if _adopters == 0:
            before = ctypes.c_int()
            prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
            _was_subreaper = before.value
        _adopters += adopters
        _leavers += leavers
        are_ours = (_adopters > 0 and _leavers == 0) or _was_subreaper > 0
        prctl(_PR_SET_CHILD_SUBREAPER, int(are_ours), 0, 0, 0)


def command_line(pid: int) -> str:
    """Return a process's arguments, or an empty string when it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def command_line_arguments(pid: int) -> list[str]:
    """Return a living process's argument vector."""
    return proc_text(Path(f"/proc/{pid}/cmdline")).rstrip("\0").split("\0")


def stopped(pids: Iterable[int]) -> set[int]:
    """Return those of the processes that a signal has stopped."""
    found = set()
    for pid in pids:
        with suppress(OSError):  # it is gone: its pidfd tells
            state = proc_text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[0]
            if state == "T":
                found.add(pid)
    return found


def reap_zombie(pid: int) -> None:
    """Reap a dead QEMU of ours by its pid; do nothing to anything else that has this pid."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        # Read after the pidfd was opened.
        name = proc_text(Path(f"/proc/{pid}/stat")).partition("(")[2].rpartition(")")
        if name[0].startswith("qemu-system") and name[2].split()[0] == "Z":
            os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
    except OSError:  # reaped by now, or no child of ours
        pass
    finally:
        os.close(fd)


class Process:
    """One process, held by pidfd from while it was known to be the right one until it is closed."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.exit_status: int | None = None
        """Once reaped: the exit status, or the negative number of the signal that ended it. None if not our child."""
        self._fd = fd
        keep_from_children(self)

    def __repr__(self) -> str:
        return f"<Process {self.pid} {'alive' if self.is_alive else 'dead'}>"

    @classmethod
    def open(cls, pid: int, mark: str) -> Process | None:
        """Return the process whose command line contains `mark`, or None when it is gone or another's."""
        try:
            fd = os.pidfd_open(pid)
        except (ProcessLookupError, OSError):
            return None
        if mark not in command_line(pid):  # read after the pidfd was opened: it speaks of this very process
            os.close(fd)
            return None
        return cls(pid, fd)

    @classmethod
    def find(cls, mark: str) -> list[Process]:
        """Return every QEMU process whose command line contains `mark`."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        marked = [pid for pid in pids if mark in (line := command_line(pid)) and "qemu-system" in line.split(" ", 1)[0]]
        return [process for pid in marked if (process := cls.open(pid, mark))]

    @property
    def is_alive(self) -> bool:
        return self._fd >= 0 and not self._poll(0)

    def _poll(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def kill(self) -> bool:
        """Send SIGKILL; return False when we are not allowed to (a daemon started it as another user)."""
        if self._fd < 0:
            return True
        try:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:
            return False
        return True

    async def wait_dead(self) -> None:
        """Return once the process has ended."""
        if self._fd >= 0 and not self._poll(0):
            await anyio.wait_readable(self._fd)

    def wait_dead_blocking(self, seconds: float) -> bool:
        """Wait in this thread; return whether the process has ended."""
        deadline = time.monotonic() + seconds
        return self._fd < 0 or self._poll(deadline - time.monotonic())

    def reap(self) -> None:
        """Collect the exit status if it is our child, so that no zombie stays; keep the pidfd."""
        if self._fd >= 0:
            with suppress(ChildProcessError):
                ended = os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
                if ended is not None:
                    self.exit_status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def close(self) -> None:
        """Reap, and give the pidfd back. May be called twice."""
        self.reap()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        """The pidfd: readable once the process has ended."""
        return self._fd
