"""How much of the host's processors a VM's QEMU gets when others want them too."""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.hypervisor.process import Process

_LEAST = 19
"""The kernel's bound: nobody yields more."""


def lower(process: Process, by: int) -> list[str]:
    """Have a child of ours yield to this process by so much; return what of it could not be done, and why.

    Set are its threads, which those that it starts later inherit it from, and where the kernel shares processors out
    among sessions first (autogroups) the session that libvirt makes for each QEMU: threads of two sessions are not
    compared. The kernel lets an unprivileged user set a session some ten times a second, so that is worth another try.
    """
    refused = []
    for what, act in (("threads", _lower_threads), ("session", _lower_session)):
        try:
            act(process.pid, by)
        except (ProcessLookupError, FileNotFoundError):  # it ended, and so did what was to be set
            break
        except OSError as error:
            refused.append(f"{what}: {error.strerror}")
    return refused


def session_nice(pid: int) -> int | None:
    """Return by how much a process's session yields to others; None where it competes by itself, as in no session.

    That is so where the kernel does not share processors out among sessions, and for what nobody in its ancestry began
    a session: children of init, and what a container's or a virtual machine's first process starts.
    """
    try:
        return int(_session(pid).read_text().split()[-1])
    except (OSError, ValueError, IndexError):  # no such file, or nothing in it
        return None


def _lower_threads(pid: int, by: int) -> None:
    """Begin with the first thread, so that what it starts meanwhile has got the value from it."""
    nice = min(_LEAST, os.getpriority(os.PRIO_PROCESS, os.getpid()) + by)
    done: set[int] = set()
    while left := {pid, *(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())} - done:
        for thread in sorted(left, key=lambda number: number != pid):
            try:
                os.setpriority(os.PRIO_PROCESS, thread, nice)
            except ProcessLookupError:
                if thread == pid:
                    raise
        done |= left


def _lower_session(pid: int, by: int) -> None:
    """Outside any session we compete with that of QEMU by our own value."""
    if session_nice(pid) is None:
        return
    ours = session_nice(os.getpid())
    if ours is None:
        ours = os.getpriority(os.PRIO_PROCESS, os.getpid())
    _session(pid).write_text(str(min(_LEAST, ours + by)))


def _session(pid: int) -> Path:
    return Path(f"/proc/{pid}/autogroup")
