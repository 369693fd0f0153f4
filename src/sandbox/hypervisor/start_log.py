"""The log that a QEMU writes of its own start, while a trace is being made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox.trace.stage import recorder


@contextmanager
def start_log(path: Path, owner: tuple[int, int] | None, pid_file: Path) -> Iterator[Path | None]:
    """Give a file for QEMU to log its start to, for as long as it starts; None if no trace is wanted.

    `owner` is the user that QEMU runs as. libvirt writes `pid_file` when it has forked QEMU.
    """
    trace = recorder.get()
    if trace is None:
        yield None
        return
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        if owner is not None:
            os.chown(path, *owner)
        yield path
        forked = None
        with suppress(OSError):  # without it, the span of the process's start is missing
            forked = pid_file.stat().st_mtime
        trace.add_qemu_log(path.read_text(errors="replace"), forked)
    finally:
        path.unlink(missing_ok=True)
