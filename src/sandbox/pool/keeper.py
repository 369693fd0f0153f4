"""The one task that owns a pool's VMs: it starts, evicts and ends them, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count

import anyio

from sandbox.config import PoolConfig
from sandbox.errors import PoolClosed, SandboxError
from sandbox.event import EventKind
from sandbox.pool.broadcast import Broadcast
from sandbox.pool.health import Health
from sandbox.pool.policy import plan, spread
from sandbox.pool.shelf import Shelf
from sandbox.pool.slot import Slot
from sandbox.pool.succession import RenewableSource, Succession
from sandbox.vm import VM, VMSource


class Keeper:
    """Keeps the shelves filled until it is closed. Every slot is a child of its task and ends before it does."""

    def __init__(self, config: PoolConfig, broadcast: Broadcast) -> None:
        self.shelves: dict[str, Shelf] = {}
        self.successions: dict[str, Succession] = {}
        self.changed = anyio.Event()
        """Set, and replaced by another one, whenever a VM or a claim changes its state."""
        self.is_closing = False
        self._config = config
        self._broadcast = broadcast
        self._numbers = count(1)
        self._kick = anyio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_started(self) -> bool:
        return self._task is not None

    @property
    def is_over(self) -> bool:
        """Whether it was closed and every VM is gone."""
        return self.is_closing and (self._task is None or self._task.done())

    def add(self, name: str, source: VMSource, min_size: int) -> None:
        """Have a shelf for this source, too. Only before the start."""
        if isinstance(source, RenewableSource):
            source = source.kept()
        now = asyncio.get_running_loop().time
        news = {"on_change": self._on_change, "on_room": self._on_room}
        shelf = Shelf(name, source, min_size, self._config, now=now, broadcast=self._broadcast, **news)
        self.shelves[name] = shelf
        if isinstance(source, RenewableSource):
            self.successions[name] = Succession(shelf, self._config, self._broadcast)

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name="sandbox-pool")

    def look_again(self) -> None:
        """Have it look at the shelves now."""
        self._kick.set()

    def close(self) -> None:
        """Begin to end everything. Synchronous: nothing is started from now on."""
        self.is_closing = True
        self._kick.set()

    async def wait_over(self) -> None:
        """Return when every VM is gone; raise what has brought it down, if something has."""
        if self._task is not None:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._task])
            self._task.result()

    def slots(self) -> Iterator[Slot]:
        for shelf in self.shelves.values():
            yield from shelf.slots

    def vms(self) -> Iterator[VM]:
        """Yield every VM that is ready, paused or leased."""
        for slot in self.slots():
            if slot.vm is not None and not slot.is_over:
                yield slot.vm

    def end_vm(self, name: str) -> bool:
        """Destroy the VM of this name, whoever holds it; return whether there was one."""
        found = [slot for slot in self.slots() if slot.vm is not None and slot.vm.name == name and not slot.is_over]
        for slot in found:
            slot.end("killed")
        return bool(found)

    async def _keep(self) -> None:
        health = Health(self.vms, self._broadcast)
        try:
            async with anyio.create_task_group() as group:
                for succession in self.successions.values():
                    group.start_soon(succession.serve)
                group.start_soon(health.serve)
                while not self.is_closing:
                    self._kick = anyio.Event()
                    pause = self._pause()  # before the census: what is over by then is seen by it
                    for slot in self._due():
                        group.start_soon(slot.live)
                    with anyio.move_on_after(pause):
                        await self._kick.wait()
                self._refuse_all(PoolClosed("the pool was closed while this claim waited"))
                for succession in self.successions.values():
                    succession.stop()
                health.stop()
                for shelf in self.shelves.values():
                    shelf.is_closing = True
                    for slot in list(shelf.slots):
                        slot.end("closed")
        finally:  # also when a defect of ours or of a source brings the owner down: nobody is left waiting
            self.is_closing = True
            self._refuse_all(PoolClosed("the pool has ended; `aclose` raises the cause if it failed"))
            self._on_change()
            self._broadcast.tell(EventKind.POOL_CLOSED)

    def _due(self) -> Iterator[Slot]:
        """Evict what is due, and yield new slots for what is to be started."""
        shelves = list(self.shelves.values())
        due = plan(
            [shelf.census() for shelf in shelves],
            max_size=self._config.max_size,
            concurrent_starts=self._config.concurrent_starts,
        )
        for shelf, starts, evictions in zip(shelves, due.starts, due.evictions, strict=True):
            for _ in range(starts):
                number = next(self._numbers)
                slot = Slot(shelf, number, spread(self._config.ttl, number))
                shelf.slots.add(slot)
                shelf.count.created += 1
                yield slot
            shelf.evict(evictions)

    def _pause(self) -> float | None:
        """Return seconds until a shelf may start VMs that it may not start now; None if no time is in the way."""
        return min((pause for shelf in self.shelves.values() if (pause := shelf.pause()) > 0), default=None)

    def _refuse_all(self, error: SandboxError) -> None:
        for shelf in self.shelves.values():
            shelf.queue.refuse_all(error)

    def _on_room(self) -> None:
        for shelf in self.shelves.values():
            shelf.see_room()

    def _on_change(self) -> None:
        self._kick.set()
        changed, self.changed = self.changed, anyio.Event()
        changed.set()
