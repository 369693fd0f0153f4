"""A small process that ends this process's VMs when this one was killed.

A guest that runs notices that its host is gone, and powers off. One that is paused cannot. SIGKILL leaves this process
no time for it, so another one waits for its end. It sleeps until then.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from sandbox.inherited import Descriptor
from sandbox.log import log

_END_SECONDS = 2.0
_PROGRAM = """
import fcntl, os, signal, sys, time
directory, lock_name, seconds = sys.argv[1].rstrip("/"), sys.argv[2], int(sys.argv[3])
while os.read(0, 1):  # it ends when the last copy of the other end is closed
    pass
signal.alarm(seconds)
try:
    lock = os.open(directory + "/" + lock_name, os.O_RDWR | os.O_NOFOLLOW)
except FileNotFoundError:  # all was cleared: by that process as it ended, or by the next one
    sys.exit()
fcntl.flock(lock, fcntl.LOCK_SH)  # it is free when its owner is dead
os.close(lock)  # who clears the directory wants it
mark = (directory + "/").encode()
def is_ours(pid):
    try:
        with open("/proc/%s/cmdline" % pid, "rb") as file:
            line = file.read()
    except OSError:
        return False
    return mark in line and b"qemu-system" in line.split(bytes(1), 1)[0]
looks = 2  # one that was being started may come to be
while looks:
    looks -= 1
    for pid in filter(is_ours, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            process = os.pidfd_open(int(pid))
            if is_ours(pid):  # looked at again: this very process
                signal.pidfd_send_signal(process, signal.SIGKILL)
                looks = 2
            os.close(process)
        except OSError:
            pass
    time.sleep(0.1)
"""
_SEARCH_SECONDS = 60


class Undertaker:
    """Waits for this process's death, and then kills each QEMU of one run directory."""

    def __init__(self, run_directory: Path, lock_name: str) -> None:
        self._arguments = (str(run_directory), lock_name, str(_SEARCH_SECONDS))
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._life: Descriptor | None = None
        self._is_told = False

    def __repr__(self) -> str:
        return f"<Undertaker {self._process.pid if self._process is not None else 'not started'}>"

    @property
    def pid(self) -> int | None:
        """Its process; None before it was needed."""
        return self._process.pid if self._process is not None else None

    def attend(self) -> None:
        """Have it wait from now on. Blocks for some milliseconds the first time. A host without room for it goes on."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            if self._life is not None:
                self._life.close()
            try:
                self._start()
            except OSError as error:
                if not self._is_told:
                    self._is_told = True
                    consequence = "paused VMs outlive this process if it is killed, until another one starts"
                    log.info("no_undertaker", reason=error.strerror, consequence=consequence)

    def _start(self) -> None:
        if not Path(sys.executable or "").name.startswith("python"):  # it is embedded: that program is another one
            raise FileNotFoundError(0, f"{sys.executable or 'this program'} is no Python interpreter")
        read_end, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, *self._arguments],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # what is typed at a terminal, or a hang-up of it, is not for it
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        self._life = Descriptor(write_end)

    def close(self) -> None:
        """Dismiss it, when the run directory has been removed."""
        with self._lock:
            process, self._process = self._process, None
            if self._life is not None:
                self._life.close()
            if process is None:
                return
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
                return
            process.kill()
            process.wait()
