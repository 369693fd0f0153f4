"""The caller's side of a claimed VM: use it, release it once or many times, see it destroyed."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

import anyio

from sandbox.vm import VM

if TYPE_CHECKING:
    from sandbox.pool.slot import Slot


class Lease:
    """One VM for one caller. It is never lent again: releasing destroys it."""

    def __init__(self, slot: Slot, vm: VM) -> None:
        self.vm = vm
        self._slot = slot

    def __repr__(self) -> str:
        return f"<Lease of {self.vm.name} {self._slot.state}>"

    async def release(self) -> None:
        """Destroy the VM and return when its process is gone. Further calls change nothing.

        Cancelling the wait does not stop the destruction: the pool owns it.
        """
        self.release_nowait()
        await self._slot.gone.wait()

    def release_nowait(self) -> None:
        """Begin to destroy the VM and return at once."""
        self._slot.end()

    async def __aenter__(self) -> VM:
        return self.vm

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.release()
