"""The caller's side of a claimed VM: use it, release it once or many times, see it destroyed."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

import anyio

from sandbox import arguments
from sandbox.errors import StateError
from sandbox.guest.identity import Receipt
from sandbox.handle import Handle
from sandbox.home import Home
from sandbox.vm import VM

if TYPE_CHECKING:
    from sandbox.pool.slot import Slot


class Lease(Handle):
    """One VM for one caller. It is never lent again and never bound to another: releasing destroys it.

    Keep the lease as long as you use its VM. One that is dropped without `release` ends when it is collected, with a
    `ResourceWarning` and a line in the log, as an open file does.
    """

    def __init__(self, slot: Slot, vm: VM, home: Home) -> None:
        self.vm = vm
        self._slot = slot
        self._home = home

    def __del__(self) -> None:
        """Runs in any thread, at any time, and in children that were forked: the slot's own loop ends it."""
        slot = getattr(self, "_slot", None)  # None in one that was never made whole
        if slot is None or slot.is_over or self._home.process != os.getpid():
            return
        with suppress(RuntimeError):  # the loop is closed, and with it went the pool
            self._home.loop.call_soon_threadsafe(slot.drop)
        said = f"the lease {self.token} was dropped without `release`: its VM is destroyed"
        warnings.warn(said, ResourceWarning, stacklevel=1, source=self)

    def __repr__(self) -> str:
        return f"<Lease {self.token} of {self.vm.name} {'ended' if self.has_ended else 'held'}>"

    @property
    def token(self) -> str:
        """Names this lease in logs; unique for the pool's life."""
        return f"{self.vm.name}.{self._slot.number}"

    @property
    def receipt(self) -> Receipt | None:
        """What its VM has proved of its identity, its template's generation, whether it was ready, and timings."""
        return self.vm.receipt

    @property
    def has_ended(self) -> bool:
        """Whether it was released, has expired, or has lost its VM. It says so at once, and never unsays it."""
        return self._slot.is_over

    @property
    def left(self) -> float | None:
        """Seconds until it expires; None if it does not."""
        return None if self._slot.lease_ends is None else max(0.0, self._slot.lease_ends - self._slot.now())

    def renew(self, ttl: float | None) -> None:
        """Let it expire this many seconds from now, or never. Raises `StateError` when it has ended."""
        self._home.check(self)
        left = arguments.given(arguments.seconds, "ttl", ttl)
        if self.has_ended:
            raise StateError(f"the lease {self.token} has ended; claim another VM")
        self._slot.lease_ends = None if left is None else self._slot.now() + left
        self._slot.look_again()

    async def wait_ended(self) -> None:
        """Return when it has ended, however."""
        self._home.check(self)
        await self._slot.over.wait()

    async def release(self) -> None:
        """Destroy the VM and return when its process is gone. Further calls change nothing.

        Cancelling the wait does not stop the destruction: the pool owns it.
        """
        self.release_nowait()
        await self._slot.gone.wait()

    def release_nowait(self) -> None:
        """Begin to destroy the VM and return at once."""
        self._home.check(self)
        self._slot.end()

    async def __aenter__(self) -> VM:
        return self.vm

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.release()
