"""One builder at a time: an advisory lock that the kernel releases when its holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.hypervisor.inherited import keep_from_children


@contextmanager
def build_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock; call `waiting` once if somebody else has it."""
    with path.open("a") as file:
        keep_from_children(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        # Closing releases it. The file stays: removing it would let two builders lock two files of one name.
        yield


def is_held(path: Path) -> bool:
    """Return whether somebody builds right now."""
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
