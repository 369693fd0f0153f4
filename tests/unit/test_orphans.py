"""Whose child a process becomes that loses its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

from sandbox.hypervisor.process import adopting_orphans, leaving_orphans


def _parent_of_an_orphan() -> int:
    """Return the parent of a process whose own parent has ended; end it, and collect it if it is ours."""
    command = ["sh", "-c", "tail -f /dev/null >/dev/null 2>&1 & echo $!"]
    pid = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGKILL)
    if parent == os.getpid():
        os.waitpid(pid, 0)
    return parent


def test_orphans_are_ours_only_while_a_vm_starts() -> None:
    """Before and after, they go where they would without us; starts that overlap count."""
    assert _parent_of_an_orphan() != os.getpid()
    with adopting_orphans():
        with adopting_orphans():
            assert _parent_of_an_orphan() == os.getpid()
        assert _parent_of_an_orphan() == os.getpid()
    assert _parent_of_an_orphan() != os.getpid()


def test_orphans_of_libvirts_probe_are_never_ours() -> None:
    """Also while another thread starts a VM, which has its orphans again afterwards."""
    starts, ends = threading.Event(), threading.Event()

    def start() -> None:
        with adopting_orphans():
            starts.set()
            ends.wait(30)

    with leaving_orphans():
        starter = threading.Thread(target=start)
        starter.start()
        assert starts.wait(30)
        assert _parent_of_an_orphan() != os.getpid()
    assert _parent_of_an_orphan() == os.getpid()
    ends.set()
    starter.join()
    assert _parent_of_an_orphan() != os.getpid()
