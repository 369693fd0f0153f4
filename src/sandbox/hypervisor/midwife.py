"""Watch over a QEMU process while libvirt starts it, before anybody holds its pidfd."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.hypervisor.process import Process

_LOOK_SECONDS = 0.01


@contextmanager
def reaping(pid_file: Path, name: str) -> Iterator[None]:
    """For the length of the context, reap the domain's QEMU should it die.

    It is our child, because we are the subreaper, and libvirt takes the zombie for a living process: a start that
    fails would take libvirt 30 s instead of 0.3 s. The pid is known from the file that libvirt writes, nowhere else.
    """
    is_over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(pid_file, name, is_over), name=f"midwife-{name}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def _watch(pid_file: Path, name: str, is_over: threading.Event) -> None:
    process = None
    while not is_over.wait(_LOOK_SECONDS):
        if process is None:
            process = _find(pid_file, name)
        elif not process.is_alive:
            process.reap()
    if process is not None:
        process.close()


def _find(pid_file: Path, name: str) -> Process | None:
    try:
        return Process.open(int(pid_file.read_text()), name)
    except (OSError, ValueError):  # not written yet
        return None
