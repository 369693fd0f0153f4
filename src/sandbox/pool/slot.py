"""One VM's whole life in a pool, top to bottom, in one task that owns it from start to end."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING

import anyio

from sandbox.errors import SandboxError, StartError
from sandbox.log import log
from sandbox.vm import VM, VMSource

if TYPE_CHECKING:
    from sandbox.pool.pool import VMPool


class SlotState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    LEASED = "leased"
    ENDING = "ending"


class Slot:
    """Owns one VM. Callers never get it: they get leased access that ends with the slot."""

    def __init__(self, pool: VMPool, number: int) -> None:
        self.state = SlotState.STARTING
        self.vm: VM | None = None
        self.is_lost = False
        self.gone = anyio.Event()
        self._pool = pool
        self._number = number
        self._expires = 0.0
        self._claimed_or_over = anyio.Event()
        self._over = anyio.Event()
        self._scope = anyio.CancelScope()

    def __repr__(self) -> str:
        return f"<Slot {self._number} {self.state}>"

    async def live(self, source: VMSource, ttl: float) -> None:
        """Start a VM, offer it, serve at most one lease, destroy it. Ends only when the VM is gone."""
        was_offered = False
        try:
            with self._scope:
                async with source.lease() as vm:
                    try:
                        self.vm = vm
                        self._expires = time.monotonic() + ttl
                        vm.call_when_lost(self._on_lost)
                        if self.is_lost:
                            raise StartError(f"{vm.name} died before it could be lent")
                        was_offered = True
                        self._pool.on_ready(self)
                        with anyio.move_on_after(ttl):
                            await self._claimed_or_over.wait()
                        if self.state is SlotState.LEASED:
                            await self._over.wait()
                    finally:
                        self._pool.on_ending(self)
        except SandboxError as error:
            if was_offered:
                log.error("vm_end_failed", slot=self._number, error=str(error))
            else:
                log.warning("vm_start_failed", slot=self._number, error=str(error))
                self._pool.on_start_failed(error)
        finally:
            self.gone.set()
            self._pool.on_gone(self)

    @property
    def is_claimable(self) -> bool:
        """Whether the VM may be handed out now: ready, alive, and younger than its time to live."""
        return (
            self.state is SlotState.READY
            and not self._over.is_set()
            and self.vm is not None
            and self.vm.is_alive
            and time.monotonic() < self._expires
        )

    def claim(self) -> VM:
        """Hand the VM to a lease. Synchronous: there is no instant at which nobody owns it."""
        assert self.is_claimable
        assert self.vm is not None
        self.state = SlotState.LEASED
        self._claimed_or_over.set()
        return self.vm

    def end(self) -> None:
        """Let the slot proceed to the destruction of its VM. May be called at any time and any number of times."""
        if self.state is SlotState.STARTING:
            self._scope.cancel()
        else:
            self._pool.on_ending(self)
        self._over.set()
        self._claimed_or_over.set()

    def _on_lost(self) -> None:
        self.is_lost = True
        self.end()
