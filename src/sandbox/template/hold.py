"""Locks of templates: one for whoever bakes, one for everybody who uses a template, so that nobody removes it."""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.to_thread import run_sync

from sandbox.errors import TemplateError
from sandbox.inherited import Descriptor
from sandbox.paths import make_directory
from sandbox.stored import refused
from sandbox.template.manifest import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLL_SECONDS = 0.05
_LOOKING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Hold:
    """Keeps one template from being removed by anybody, for as long as this object lives or until `release`."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._close = weakref.finalize(self, descriptor.close)

    @classmethod
    def take(cls, directory: Path) -> Hold | None:
        """Hold the template in this directory; None if there is none, or if it is being removed. Blocks briefly."""
        try:
            descriptor = Descriptor(os.open(directory / MANIFEST, _LOOKING))
        except OSError:  # there is none, or none that could be used
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.fstat(descriptor.fileno()), os.stat(directory / MANIFEST))  # noqa: PTH116
        except OSError:
            is_there = False
        if not is_there:
            descriptor.close()
            return None
        return cls(descriptor)

    def release(self) -> None:
        """Let it go. May be called twice."""
        self._close()


@contextmanager
def removing(directory: Path) -> Iterator[bool]:
    """Tell whether nobody holds the template in this directory; while the context lasts, nobody can."""
    try:
        descriptor = Descriptor(os.open(directory / MANIFEST, _LOOKING))
    except OSError:  # nothing that could be used, so nothing that could be held
        yield True
        return
    with _alone(descriptor) as is_free:
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
