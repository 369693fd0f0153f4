"""What a child that this process forks must not share with it.

A run directory's lock and a guest's channel say, by being open, that their owner lives; with a pidfd a VM can be ended.
A child made by `os.fork` has a copy of each and closes it before it does anything else. To close a copy frees no lock
and breaks no connection. Programs that are executed inherit nothing: every descriptor is closed on exec.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from typing import Protocol, TypeVar

from sandbox.errors import HypervisorError


class _Closeable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closeable)
_kept: weakref.WeakSet[_Closeable] = weakref.WeakSet()


def keep_from_children(thing: T) -> T:
    """Have every child that this process forks close its copy of `thing`; return it.

    Its `close` must take no lock, which a thread that the child lacks might hold, and tell the other end nothing.
    """
    _kept.add(thing)
    return thing


def check_not_forked(owner: int) -> None:
    """Raise `HypervisorError` in any process but the one with the id `owner`."""
    if os.getpid() != owner:
        raise HypervisorError(
            f"this process was forked from process {owner}, which uses libvirt: VMs and libvirt cannot be shared; "
            "start this one with `subprocess`, with multiprocessing's `spawn` or `forkserver`, or before VMs are used"
        )


class Descriptor:
    """A file descriptor for this process alone. Who asks for its number when it is closed gets -1."""

    def __init__(self, number: int) -> None:
        self._number = number
        keep_from_children(self)

    def __repr__(self) -> str:
        return f"<Descriptor {self._number if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """Whether this process has it still: not after `close`, and not in a child."""
        return self._number >= 0

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        """May be called twice."""
        number, self._number = self._number, -1  # first: closed and not yet forgotten, it could be another's by then
        if number >= 0:
            os.close(number)


def _close_copies() -> None:
    for thing in list(_kept):
        with suppress(OSError):  # whatever becomes of one, the others are closed
            thing.close()
    _kept.clear()


os.register_at_fork(after_in_child=_close_copies)
