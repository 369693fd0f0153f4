"""One VM's whole life in a pool, top to bottom, in one task that owns it from start to end."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import anyio

from sandbox.errors import SandboxError, StartError
from sandbox.event import EventKind
from sandbox.home import Home
from sandbox.log import log
from sandbox.pool.lease import Lease
from sandbox.pool.supervision import contained
from sandbox.vm import VM

if TYPE_CHECKING:
    from sandbox.guest.execution import Execution
    from sandbox.pool.shelf import Shelf


class SlotState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    PAUSED = "paused"
    WAKING = "waking"
    LEASED = "leased"
    ENDING = "ending"


class Slot:
    """Owns one VM. Callers never get it: they get leased access that ends with the slot."""

    def __init__(self, shelf: Shelf, number: int, ttl: float) -> None:
        self.state = SlotState.STARTING
        self.number = number
        self.vm: VM | None = None
        self.is_lost = False
        self.over = anyio.Event()
        self.gone = anyio.Event()
        self.why = "released"
        self.now = shelf.now
        self.source = shelf.source
        """What its VM comes from; another generation may have become the live one since."""
        self._shelf = shelf
        self._ttl = ttl
        self.started = self.now()
        self._expires = 0.0
        self.lease_ends: float | None = None
        """When its lease expires; None if it does not. The lease itself is the caller's alone: see `Lease.__del__`."""
        self._token = ""
        self.lent_at = 0.0
        self._is_stopped = False
        self._news = anyio.Event()
        self._scope = anyio.CancelScope()
        self._home: Home

    def __repr__(self) -> str:
        return f"<Slot {self.number} {self.state}>"

    async def live(self) -> None:
        """Start a VM, offer it, serve at most one lease, destroy it. Ends only when the VM is gone."""
        was_offered = has_failed = False
        self._home = Home()
        try:
            with contained("the start of a VM"), self._scope:
                async with self.source.lease() as vm:
                    try:
                        self.vm = vm
                        vm.adopt(self._shelf.config)
                        now = self.now()
                        self._expires = now + self._ttl
                        vm.call_when_lost(self._on_lost)
                        if self.is_lost:
                            raise StartError(f"{vm.name} died before it could be lent")
                        was_offered = True
                        seconds = now - self.started
                        self.tell(EventKind.VM_STARTED, seconds, pid=vm.pid, timings=vm.timings, receipt=vm.receipt)
                        self._shelf.on_ready(self, seconds)
                        await self._stay()
                    finally:
                        self._shelf.on_ending(self)
        except SandboxError as error:
            if was_offered:
                log.error("vm_end_failed", slot=self.number, error=str(error))
            else:
                has_failed = True
                seconds = self.now() - self.started
                self.tell(EventKind.VM_START_FAILED, seconds, error=str(error), code=error.code)
                self._shelf.on_start_failed(self, error)
        finally:
            if was_offered:
                self.tell(EventKind.VM_DESTROYED, self.now() - self.started, why=self.why, cause=self._cause)
            elif not has_failed:
                self.tell(EventKind.VM_START_ABANDONED, self.now() - self.started)
            self.over.set()
            self.gone.set()
            self._shelf.on_gone(self)

    async def _stay(self) -> None:
        """Wait until the VM is to be destroyed: too old, released, lease run out, idle for too long, or lost."""
        while not self.over.is_set():
            self._news = anyio.Event()
            if await self._pause_or_wake():
                continue
            pause = self._pause()
            if pause is not None and pause <= 0:
                self.end("expired")
                return
            with anyio.move_on_after(pause):
                await self._news.wait()

    async def _pause_or_wake(self) -> bool:
        """Do what the shelf has asked for; return whether there was anything."""
        assert self.vm is not None
        try:
            if self.state is SlotState.PAUSED and not self._is_stopped:
                self._is_stopped = True
                await self.vm.pause()
                self.tell(EventKind.VM_PAUSED)
            elif self.state is SlotState.WAKING:
                if self._is_stopped:
                    began = self.now()
                    await self.vm.resume()
                    self._is_stopped = False
                    self.tell(EventKind.VM_WOKEN, self.now() - began)
                if not self.over.is_set():
                    self._shelf.on_woken(self)
            else:
                return False
        except SandboxError as error:
            log.warning("vm_not_paused_or_woken", vm=self.vm.name, error=str(error))
            self.end("expired")
        return True

    def pause(self) -> None:
        """Stop the VM until it is wanted. Synchronous: from now on it is not claimable."""
        self.state = SlotState.PAUSED
        self.look_again()

    def wake(self) -> None:
        """Let the VM run again; the shelf is told when it does."""
        self.state = SlotState.WAKING
        self.look_again()

    def _pause(self) -> float | None:
        """Return seconds until something may be due; None if nothing will be."""
        now = self.now()
        if not self._token:
            return self._expires - now
        assert self.vm is not None
        left = None if self.lease_ends is None else self.lease_ends - now
        if (allowed := self._shelf.idle_lease_timeout) is not None:
            idle = allowed - min(self.vm.idle_seconds, now - self.lent_at)  # what was before the lease is not its
            left = idle if left is None else min(left, idle)
        return left

    @property
    def is_over(self) -> bool:
        return self.over.is_set()

    @property
    def is_claimable(self) -> bool:
        """Whether the VM may be handed out now: ready, alive, and younger than its time to live."""
        return (
            self.state is SlotState.READY
            and not self.over.is_set()
            and self.vm is not None
            and self.vm.is_alive
            and self.now() < self._expires
        )

    @property
    def is_stale(self) -> bool:
        """Whether it is of another generation than new VMs are started from."""
        return self.source is not self._shelf.source

    def claim(self, lease_ttl: float | None) -> Lease:
        """Hand the VM to a lease. Synchronous: there is no instant at which nobody owns it."""
        assert self.is_claimable
        assert self.vm is not None
        self.state = SlotState.LEASED
        self.lent_at = self.now()
        self.lease_ends = None if lease_ttl is None else self.lent_at + lease_ttl
        lease = Lease(self, self.vm, self._home)
        self._token = lease.token
        self.vm.call_on_executions(self._on_execution)
        self.look_again()
        return lease

    def tell(self, kind: EventKind, seconds: float | None = None, *, execution: str = "", **fields: object) -> None:
        """Tell the pool's observers something about this slot's VM, or its lease."""
        self._shelf.broadcast.tell(
            kind,
            template=self._shelf.name,
            vm=self.vm.name if self.vm is not None else "",
            lease=self._token,
            execution=execution,
            seconds=seconds,
            **fields,
        )

    def tell_lease_ended(self) -> None:
        """Tell that the lease is over, and of what the VM died if it did."""
        self.tell(EventKind.LEASE_ENDED, self.now() - self.lent_at, why=self.why, cause=self._cause)

    @property
    def _cause(self) -> str | None:
        """What the VM died of, where it was lost."""
        loss = self.vm.loss if self.vm is not None and self.why == "lost" else None
        return loss.certificate.cause.value if loss is not None and loss.certificate is not None else None

    def _on_execution(self, execution: Execution) -> None:
        kind = EventKind.EXECUTION_ENDED if execution.has_ended else EventKind.EXECUTION_STARTED
        self.tell(kind, execution.seconds, execution=execution.id, **execution.account())

    def look_again(self) -> None:
        """Have the slot look at its deadlines anew."""
        self._news.set()

    def end(self, why: str = "released") -> None:
        """Let the slot proceed to the destruction of its VM. May be called at any time and any number of times."""
        if self.over.is_set():
            return
        self.why = why
        self.over.set()
        self._news.set()
        if self.state is SlotState.STARTING:
            self._scope.cancel()
            return
        was_leased = self.state is SlotState.LEASED
        self._shelf.on_ending(self)
        if was_leased and self.vm is not None and not self.is_lost:
            self.vm.release(f"the lease {self._token} has ended ({why}): its VM is destroyed")

    def drop(self) -> None:
        """End a lease that its caller has lost without ending it."""
        if not self.over.is_set():
            log.warning("lease_dropped", lease=self._token, vm=self.vm.name if self.vm is not None else "")
            self.end("dropped")

    def _on_lost(self) -> None:
        self.is_lost = True
        self.end("lost")
