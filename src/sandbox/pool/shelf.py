"""One template's part of a pool: its warm set, its queue of callers, and how its starts have gone of late."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from sandbox.config import PoolConfig
from sandbox.errors import HostResources, SandboxError, StateNotLoaded
from sandbox.event import EventKind
from sandbox.pool.broadcast import Broadcast
from sandbox.pool.lease import Lease
from sandbox.pool.policy import (
    FAILURES_UNTIL_BREAK,
    YOUNG_LEASE,
    Census,
    Rate,
    back_off,
    seniority,
    target_ready,
    wakes_due,
)
from sandbox.pool.queue import Queue, Request
from sandbox.pool.slot import Slot, SlotState
from sandbox.pool.statistics import Counters, GenerationStatistics
from sandbox.vm import VMSource

_SMOOTHING = 0.3
_WARM = (SlotState.READY, SlotState.PAUSED, SlotState.WAKING)


class Shelf:
    """Holds the slots of one template. Everything here is synchronous; the pool's owner task starts the slots."""

    def __init__(
        self,
        name: str,
        source: VMSource,
        min_size: int,
        config: PoolConfig,
        *,
        now: Callable[[], float],
        on_change: Callable[[], None],
        on_room: Callable[[], None],
        broadcast: Broadcast,
    ) -> None:
        self.name = name
        self.now = now
        self.broadcast = broadcast
        self.source = source
        self.slots: set[Slot] = set()
        self.ready: deque[Slot] = deque()
        """Running, to be claimed at once."""
        self.paused: deque[Slot] = deque()
        self.waking: set[Slot] = set()
        """Told to run again and not yet there: kept, because a claim that counted all slots would grow with them."""
        self.queue = Queue(config.max_waiting)
        self.count = Counters()
        self.failures = 0
        self.last_failure: SandboxError | None = None
        self.resume_at = 0.0
        self.is_closing = False
        self.on_unloadable: Callable[[VMSource], None] = lambda _: None
        """Called when QEMU could not load the state of a source."""
        self._min_size = min_size
        self.config = config
        self._last_failed = -math.inf
        self._on_change = on_change
        self._on_room = on_room
        self._claims = Rate()
        self._start_seconds = 0.0

    @property
    def idle_lease_timeout(self) -> float | None:
        return self.config.idle_lease_timeout

    @property
    def is_broken(self) -> bool:
        """Whether starts have failed so often that whoever asks is told the cause at once."""
        return self.last_failure is not None and self.now() < self.resume_at

    def census(self) -> Census:
        states = [slot.state for slot in self.slots]
        warm = [states.count(state) for state in _WARM]
        now = self.now()
        rate = self._claims.per_second(now)
        return Census(
            starting=states.count(SlotState.STARTING),
            ready=sum(warm),
            leased=states.count(SlotState.LEASED),
            ending=states.count(SlotState.ENDING),
            waiting=len(self.queue),
            stale=sum(slot.is_stale for slot in self.slots if slot.state in _WARM),
            target=target_ready(self._min_size, self.config.max_ready or 0, rate, self._start_seconds),
            may_start=now >= self.resume_at,
            has_young_lease=self._youth_left(now) > 0,
            next_callers=self.queue.seniorities(self._coming, self.config.concurrent_starts or 0),
            is_on_probation=self.failures >= FAILURES_UNTIL_BREAK,
        )

    @property
    def _coming(self) -> int:
        """VMs that whoever waits may still get, if all goes well: warm ones, and those that start."""
        warm = len(self.ready) + len(self.paused) + len(self.waking)
        return warm + sum(slot.state is SlotState.STARTING for slot in self.slots)

    def pause(self) -> float:
        """Return seconds until it may start VMs that it may not start now; not positive when no time is in the way."""
        now = self.now()
        return max(self.resume_at - now, self._youth_left(now))

    def _youth_left(self, now: float) -> float:
        lent = [slot.lent_at for slot in self.slots if slot.state is SlotState.LEASED]
        return max(lent, default=-math.inf) + YOUNG_LEASE - now

    def generations(self) -> list[GenerationStatistics]:
        """Return what exists of each generation, the live one first."""
        sources = sorted({id(slot.source): slot.source for slot in self.slots}.values(), key=_generation, reverse=True)
        found = []
        for source in [self.source, *(source for source in sources if source is not self.source)]:
            states = [slot.state for slot in self.slots if slot.source is source]
            found.append(
                GenerationStatistics(
                    generation=_generation(source),
                    is_live=source is self.source,
                    starting=states.count(SlotState.STARTING),
                    ready=sum(states.count(state) for state in _WARM),
                    leased=states.count(SlotState.LEASED),
                    ending=states.count(SlotState.ENDING),
                )
            )
        return found

    def take(self, lease_ttl: float | None) -> Lease | None:
        """Return a lease on the oldest ready VM, if one may be handed out at once and nobody waits before."""
        self._claims.add(self.now())
        while self.ready and not self.queue:
            slot = self.ready.popleft()
            if slot.is_claimable:
                self.count.hits += 1
                lease = self._lend(slot, lease_ttl, 0.0, hit=True)
                self._wake_some()
                return lease
            slot.end("expired")
        return None

    def enqueue(self, priority: float, lease_ttl: float | None) -> Request:
        """Put a caller in the queue; raise `PoolBusy` when too many wait.

        While starts are held back, whoever is too junior for the VMs that there are is refused with the cause.
        """
        key = seniority(self.now(), priority, self.config.priority_seconds)
        request = Request(key, self.now(), lease_ttl)
        self.queue.put(request)
        self._wake_some()
        self._refuse_hopeless()
        return request

    def evict(self, count: int) -> None:
        """Destroy ready VMs, those of another generation first, then the oldest."""
        idle = sorted([*self.paused, *self.ready], key=lambda slot: not slot.is_stale)
        for slot in idle[:count]:
            slot.end("superseded" if slot.is_stale else "evicted")

    def replace_source(self, source: VMSource) -> None:
        """Start new VMs from another source; what is warm is replaced as they become ready, what is leased stays."""
        self.source = source
        self.failures, self.last_failure, self.resume_at = 0, None, 0.0
        self._on_change()

    # What slots tell.

    def on_ready(self, slot: Slot, seconds: float) -> None:
        """A slot has a VM to offer: it goes to who waits longest, or to the warm set."""
        slot.state = SlotState.READY
        self.failures, self.last_failure, self.resume_at = 0, None, 0.0
        self._start_seconds += (seconds - self._start_seconds) * (_SMOOTHING if self._start_seconds else 1.0)
        self._offer(slot)

    def on_woken(self, slot: Slot) -> None:
        """A paused slot runs again."""
        self.waking.discard(slot)
        slot.state = SlotState.READY
        self._offer(slot)

    def _offer(self, slot: Slot) -> None:
        if self.queue and slot.is_claimable:  # with a tiny TTL it may have expired by now
            request = self.queue.pop()
            waited = self.now() - request.since
            request.grant(request.context.run(self._lend, slot, request.lease_ttl, waited, hit=False))
        elif len(self.ready) < self.config.running_ready:
            self.ready.append(slot)
        else:
            slot.pause()
            self.paused.append(slot)
        self._on_change()

    def _wake_some(self) -> None:
        due = wakes_due(
            running=len(self.ready),
            waking=len(self.waking),
            paused=len(self.paused),
            waiting=len(self.queue),
            wanted=self.config.running_ready,
        )
        for _ in range(due):
            slot = self.paused.popleft()
            self.waking.add(slot)
            slot.wake()

    def on_ending(self, slot: Slot) -> None:
        """A slot begins to destroy its VM. Told more than once, it counts once."""
        former, slot.state = slot.state, SlotState.ENDING
        if former is SlotState.ENDING:
            return
        for shelved in (self.ready, self.paused):
            if slot in shelved:
                shelved.remove(slot)
        self.waking.discard(slot)
        if former is SlotState.LEASED:
            if slot.is_lost:
                self.count.lost += 1
            else:
                self.count.released += 1
            slot.tell_lease_ended()
        elif former is not SlotState.STARTING and not self.is_closing:
            self.count.expired += 1
        if not self.is_closing:
            self._wake_some()
            self._refuse_hopeless()
        self._on_change()

    def on_start_failed(self, slot: Slot, error: SandboxError) -> None:
        """A VM did not come up: try again, ever more slowly, and tell those who wait when it looks hopeless.

        Starts that were under way when another one failed have failed of the same, and count once with it.
        """
        slot.state = SlotState.ENDING
        if slot.started >= self._last_failed:
            self.failures += 1
            self._last_failed = self.now()
        self.last_failure = error
        self.resume_at = self.now() + back_off(self.failures)
        if isinstance(error, HostResources):
            self.queue.refuse_beyond(self._coming, error)
        self._refuse_hopeless()
        self.count.failed_starts += 1
        if isinstance(error, StateNotLoaded):
            self.on_unloadable(slot.source)

    def _refuse_hopeless(self) -> None:
        """While starts are held back, tell the cause to whoever waits for more than there is."""
        if self.is_broken and self.last_failure is not None:
            self.queue.refuse_beyond(self._coming, self.last_failure)

    def on_gone(self, slot: Slot) -> None:
        """A slot's VM is destroyed."""
        self.slots.discard(slot)
        self.count.destroyed += 1
        if slot.vm is not None:
            self._on_room()
        self._on_change()

    def see_room(self) -> None:
        """A VM of the pool is gone: what the host was short of may be there now, so try."""
        if isinstance(self.last_failure, HostResources):
            self.resume_at = 0.0

    def _lend(self, slot: Slot, lease_ttl: float | None, waited: float, *, hit: bool) -> Lease:
        lease = slot.claim(lease_ttl)
        if hit:
            lease.vm.origin = "hit"
        self.count.claimed += 1
        slot.tell(EventKind.LEASE_BEGAN, waited, hit=hit)
        self._on_change()
        return lease


def _generation(source: VMSource) -> int:
    """Return a source's number; 0 for one that has no successors."""
    return int(getattr(source, "generation", 0))
