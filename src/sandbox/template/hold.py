"""Locks of templates: one for whoever bakes, one for everybody who uses a template, so that nobody removes it."""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.to_thread import run_sync

from sandbox.errors import TemplateError
from sandbox.inherited import Descriptor
from sandbox.paths import make_directory
from sandbox.stored import refused
from sandbox.template.manifest import MANIFEST, MEMORY

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLL_SECONDS = 0.05
_LOCKED = (MANIFEST, MEMORY)
"""Whoever uses a template has locked both: either may be damaged, or replaced by something that nobody has locked."""
_LOOKING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Hold:
    """Keeps one template from being removed by anybody, for as long as this object lives or until `release`."""

    def __init__(self, locks: ExitStack) -> None:
        self._close = weakref.finalize(self, locks.close)

    @classmethod
    def take(cls, directory: Path) -> Hold | None:
        """Hold the template in this directory; None if there is none, or if it is being removed. Blocks briefly."""
        with ExitStack() as stack:
            for name in _LOCKED:
                try:
                    descriptor = Descriptor(os.open(directory / name, _LOOKING))
                    stack.callback(descriptor.close)
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    there = os.stat(directory / name)  # noqa: PTH116
                except OSError:  # there is none, or none that could be used
                    return None
                if not os.path.samestat(os.fstat(descriptor.fileno()), there):
                    return None
            return cls(stack.pop_all())

    def release(self) -> None:
        """Let it go. May be called twice."""
        self._close()


@contextmanager
def removing(directory: Path) -> Iterator[bool]:
    """Tell whether nobody holds the template in this directory; while the context lasts, nobody can."""
    with ExitStack() as stack:
        is_free = True
        for name in _LOCKED:
            with suppress(OSError):  # what is not there is held by nobody
                descriptor = Descriptor(os.open(directory / name, _LOOKING))
                is_free = stack.enter_context(_alone(descriptor)) and is_free
        yield is_free


@asynccontextmanager
async def baking(lock: Path) -> AsyncIterator[None]:
    """Hold the exclusive lock of those who bake. Polls, because a thread that blocks in flock cannot be cancelled."""
    try:
        await run_sync(make_directory, lock.parent)
        descriptor = Descriptor(os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644))
    except OSError as error:
        raise TemplateError(f"a template cannot be made: {refused(error, lock)}") from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await anyio.sleep(_POLL_SECONDS)
        yield
    finally:
        descriptor.close()


@contextmanager
def unless_baked(lock: Path) -> Iterator[bool]:
    """Tell whether nobody holds the lock of those who bake; while the context lasts, nobody else can."""
    with _alone(Descriptor(os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644))) as is_free:
        yield is_free


@contextmanager
def _alone(descriptor: Descriptor) -> Iterator[bool]:
    """Take the lock of an open file for the length of the context; tell whether it was free. Closes the file."""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        descriptor.close()


def is_being_baked(lock: Path) -> bool:
    """Return whether a process holds the lock of those who bake, or may for all that can be seen."""
    try:
        descriptor = os.open(lock, _LOOKING)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
