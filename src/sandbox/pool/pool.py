"""The warm pool: keeps VMs ready, lends each to one caller once, and destroys it afterwards."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from types import TracebackType
from typing import Any, Unpack

import anyio
from anyio.to_thread import run_sync

from sandbox.config import PoolConfig
from sandbox.errors import HostResources, PoolClosed, PoolTimeout, SandboxError, StateError, afresh
from sandbox.guest.sandbox import RunOptions
from sandbox.log import log
from sandbox.pool.lease import Lease
from sandbox.pool.policy import FAILURES_UNTIL_BREAK, Census, back_off, starts_due
from sandbox.pool.slot import Slot, SlotState
from sandbox.pool.statistics import PoolStatistics
from sandbox.result import Result
from sandbox.template.template import Template
from sandbox.vm import VM, VMSource


class _Request:
    """A caller in the queue. Filled by whoever has a VM or a reason why there is none."""

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.lease: Lease | None = None
        self.error: SandboxError | None = None

    def grant(self, lease: Lease) -> None:
        self.lease = lease
        self.answered.set()

    def refuse(self, error: SandboxError) -> None:
        self.error = error
        self.answered.set()


class VMPool:
    """A pool of fresh VMs, all clones of one template.

        async with VMPool(PoolConfig(min_size=4)) as pool:
            async with pool.acquire() as vm:
                result = await vm.run("print(6 * 7)", timeout=10)

    Every VM is lent at most once and destroyed at the end of its lease. At most `max_size` exist at any instant.
    The pool may be opened in one task and closed in another. When it is closed, leased VMs are destroyed too.
    """

    def __init__(self, config: PoolConfig | None = None, *, source: VMSource | None = None) -> None:
        """Make a pool, not yet open. `source` replaces the template that `config` names by another source of VMs."""
        self.config = config or PoolConfig()
        self._source = source
        self._slots: set[Slot] = set()
        self._ready: deque[Slot] = deque()
        self._waiting: deque[_Request] = deque()
        self._numbers = count(1)
        self._kick = anyio.Event()
        self._changed = anyio.Event()
        self._owner: asyncio.Task[None] | None = None
        self._was_opened = False
        self._is_closing = False
        self._failures = 0
        self._last_failure: SandboxError | None = None
        self._resume_at = 0.0
        self._count = PoolStatistics(*([0] * 13))

    def __repr__(self) -> str:
        census = self._census()
        return (
            f"<VMPool {'closed' if self._owner is None else 'open'} ready={census.ready} leased={census.leased} "
            f"starting={census.starting} ending={census.ending} waiting={census.waiting}>"
        )

    async def open(self) -> None:
        """Prepare the template (build and bake it if need be) and begin to fill the pool; does not wait for VMs."""
        if self._was_opened or self._is_closing:
            raise StateError("this pool was opened before; make a new one")
        self._was_opened = True
        if self._source is None:
            template = await Template.ensure(self.config.template, self.config.host)
            self._source = template.warmed() if self.config.warm_up else template
        await run_sync(log.prepare)
        if self._is_closing:
            raise PoolClosed("the pool was closed while it was opened")
        self._owner = asyncio.create_task(self._own(self._source), name="sandbox-pool")

    async def aclose(self) -> None:
        """Refuse new claims, destroy every VM, leased ones too, and return when all are gone. May be called twice."""
        self._is_closing = True
        self._kick.set()
        if self._owner is not None:
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._owner])
            self._owner.result()

    async def __aenter__(self) -> VMPool:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def acquire(self, timeout: float | None = None) -> AsyncIterator[VM]:
        """Lend a VM for the length of the context; see `claim` for time-out and errors."""
        async with await self.claim(timeout) as vm:
            yield vm

    def lease(self) -> Any:
        """The pool as a source of VMs: `acquire` without a time-out."""
        return self.acquire()

    async def claim(self, timeout: float | None = None) -> Lease:
        """Return a lease on a ready VM, or wait in a fair queue of callers until one is there.

        Raises `PoolTimeout` after `timeout` seconds, `PoolClosed` when the pool closes meanwhile, `HostResources` when
        the host is full, and the cause when VMs fail to start time after time. If cancelled, nothing is lost.
        """
        started = time.monotonic()
        if self._owner is None or self._is_closing:
            raise PoolClosed("the pool is not open; use `async with VMPool(...)`")
        if not self._waiting and (slot := self._take_ready()) is not None:
            return self._lend(slot, started, is_hit=True)
        if time.monotonic() < self._resume_at and self._last_failure is not None:
            raise afresh(self._last_failure)
        request = _Request()
        self._waiting.append(request)
        self._kick.set()
        try:
            with anyio.move_on_after(timeout):
                await request.answered.wait()
        except BaseException:
            if request.lease is not None:
                request.lease.release_nowait()
            raise
        finally:
            if not request.answered.is_set():
                self._waiting.remove(request)
        if request.error is not None:
            raise afresh(request.error)
        if request.lease is None:
            raise PoolTimeout(self._why_late(timeout))
        vm = request.lease.vm
        vm.timings = {**vm.timings, "queue": time.monotonic() - started, "claim": 0.0}
        return request.lease

    async def run(
        self,
        code: str,
        *,
        language: str = "python",
        args: Sequence[str] = (),
        claim_timeout: float | None = None,
        **options: Unpack[RunOptions],
    ) -> Result:
        """Run code in a VM of its own and return the result; the VM is destroyed. See `claim` and `Sandbox.run`."""
        async with self.acquire(claim_timeout) as vm:
            return await vm.run(code, language=language, args=args, **options)

    async def wait_ready(self, size: int | None = None) -> None:
        """Return when `size` VMs (by default `min_size`) are ready; raise the cause if they keep failing to start."""
        size = self.config.min_size if size is None else size
        while self._census().ready < size:
            if self._is_closing:
                raise PoolClosed("the pool was closed while it was filling")
            if self._failures >= FAILURES_UNTIL_BREAK and self._last_failure is not None:
                raise afresh(self._last_failure)
            await self._changed.wait()

    def statistics(self) -> PoolStatistics:
        """Return the counters and the present state."""
        census = self._census()
        return replace(
            self._count,
            starting=census.starting,
            ready=census.ready,
            leased=census.leased,
            ending=census.ending,
            waiting=census.waiting,
        )

    # The owner task and its slots.

    async def _own(self, source: VMSource) -> None:
        """Keep the pool filled until it closes. Every slot is a child of this task and ends before it does."""
        try:
            async with anyio.create_task_group() as group:
                while not self._is_closing:
                    self._kick = anyio.Event()
                    pause = self._resume_at - time.monotonic()
                    if pause <= 0:
                        for _ in range(self._starts_due()):
                            slot = Slot(self, next(self._numbers))
                            self._slots.add(slot)
                            self._add(created=1)
                            group.start_soon(slot.live, source, self.config.ttl)
                    with anyio.move_on_after(pause if pause > 0 else None):
                        await self._kick.wait()
                self._refuse_all(PoolClosed("the pool was closed while this claim waited"))
                for slot in list(self._slots):
                    slot.end()
        finally:  # also when a defect of ours or of a source brings the owner down: nobody is left waiting
            self._is_closing = True
            self._refuse_all(PoolClosed("the pool has ended; `aclose` raises the cause if it failed"))
            self._tell()

    def _starts_due(self) -> int:
        config = self.config
        return starts_due(
            self._census(),
            min_size=config.min_size,
            max_size=config.max_size,
            concurrent_starts=config.concurrent_starts,
        )

    def on_ready(self, slot: Slot) -> None:
        """A slot has a VM to offer: it goes to who waits longest, or to the warm set."""
        slot.state = SlotState.READY
        self._failures, self._last_failure, self._resume_at = 0, None, 0.0
        if self._waiting and slot.is_claimable:  # with a tiny TTL it may have expired by now
            self._waiting.popleft().grant(self._lend(slot, time.monotonic(), is_hit=False))
        else:
            self._ready.append(slot)
        self._tell()

    def on_ending(self, slot: Slot) -> None:
        """A slot begins to destroy its VM. Told more than once, it counts once."""
        if slot.state is SlotState.ENDING:
            return
        if slot.state is SlotState.LEASED:
            self._add(lost=1) if slot.is_lost else self._add(released=1)
        elif slot.state is SlotState.READY and not self._is_closing:
            self._add(expired=1)
        if slot in self._ready:
            self._ready.remove(slot)
        slot.state = SlotState.ENDING
        self._tell()

    def on_start_failed(self, error: SandboxError) -> None:
        """A VM did not come up: try again, ever more slowly, and tell those who wait when it looks hopeless."""
        self._failures += 1
        self._last_failure = error
        self._resume_at = time.monotonic() + back_off(self._failures)
        if self._failures >= FAILURES_UNTIL_BREAK or isinstance(error, HostResources):
            self._refuse_all(error)
        self._add(failed_starts=1)

    def on_gone(self, slot: Slot) -> None:
        """A slot's VM is destroyed."""
        self._slots.discard(slot)
        self._add(destroyed=1)
        self._tell()

    def _lend(self, slot: Slot, started: float, *, is_hit: bool) -> Lease:
        vm = slot.claim()
        self._add(claimed=1, hits=int(is_hit))
        self._kick.set()
        vm.timings = {**vm.timings, "queue": 0.0, "claim": time.monotonic() - started}
        log.debug("vm_claimed", vm=vm.name, hit=is_hit)
        return Lease(slot, vm)

    def _take_ready(self) -> Slot | None:
        """Return the oldest ready slot that may be handed out; send the dead and the expired on their way."""
        while self._ready:
            slot = self._ready.popleft()
            if slot.is_claimable:
                return slot
            slot.end()
        return None

    def _refuse_all(self, error: SandboxError) -> None:
        while self._waiting:
            self._waiting.popleft().refuse(error)

    def _why_late(self, timeout: float | None) -> str:
        census = self._census()
        said = f"no VM came free within {timeout:g} s" if timeout is not None else "no VM came free"
        said += f": {census.leased} of at most {self.config.max_size} are leased, {census.starting} are starting"
        if self._last_failure is not None:
            said += f"; the last start failed: {self._last_failure}"
        return said + "; raise max_size or the time-out"

    def _census(self) -> Census:
        states = [slot.state for slot in self._slots]
        return Census(
            starting=states.count(SlotState.STARTING),
            ready=states.count(SlotState.READY),
            leased=states.count(SlotState.LEASED),
            ending=states.count(SlotState.ENDING),
            waiting=len(self._waiting),
        )

    def _add(self, **increments: int) -> None:
        changes = {name: getattr(self._count, name) + by for name, by in increments.items()}
        self._count = replace(self._count, **changes)

    def _tell(self) -> None:
        self._kick.set()
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
