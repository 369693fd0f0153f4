"""How much of the host's processors a VM's QEMU gets when others want them too."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sandbox.hypervisor.process import Process


def lower(process: Process, nice: int) -> bool:
    """Have each thread of a child of ours, those it starts later too, yield to others; return whether all is set.

    `nice` is the kernel's, 0 to 19. Where the kernel shares processors out among sessions first (autogroups), the
    session of a QEMU, which libvirt makes for it, yields likewise: else only threads of that session would compare.
    The kernel lets an unprivileged user do that some ten times a second, so a False is to be tried again.
    """
    try:
        _lower_threads(process.pid, nice)
        _lower_session(process.pid, nice)
    except (ProcessLookupError, FileNotFoundError):  # it ended, and so did what was to be set
        return True
    except OSError:
        return False
    return True


def _lower_threads(pid: int, nice: int) -> None:
    """Begin with the first thread, so that what it starts meanwhile has got the value from it."""
    done: set[int] = set()
    while left := {pid, *(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())} - done:
        for thread in sorted(left, key=lambda number: number != pid):
            try:
                os.setpriority(os.PRIO_PROCESS, thread, nice)
            except ProcessLookupError:
                if thread == pid:
                    raise
        done |= left


def _lower_session(pid: int, nice: int) -> None:
    with suppress(FileNotFoundError):  # a kernel without autogroups, or the process is gone
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))
