"""One builder at a time: an advisory lock that the kernel releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sandbox.image.wanted import pause
from sandbox.inherited import keep_from_children

_POLL_SECONDS = 0.05


@contextmanager
def build_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock; call `waiting` once if somebody else has it.

    Polls, because a thread that blocks in flock cannot be told that nobody waits for it any more.
    """
    with open(path, "a", opener=_opened) as file:
        keep_from_children(file)
        if not _take(file):
            waiting()
            while not _take(file):
                pause(_POLL_SECONDS)
        # Closing releases it. The file stays: removing it would let two builders lock two files of one name.
        yield


def _take(file: IO[str]) -> bool:
    """Take the lock if it is free; return whether it is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Return whether somebody builds right now, or may for all that can be seen. Changes nothing."""
    try:
        with open(path, "rb", opener=_opened) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _opened(path: str, flags: int) -> int:
    """Open a lock; a pipe in its place must not hold us up."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
