"""The pool against a model: any order of claims, cancellations, releases, deaths, failures and waiting."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandbox.config import PoolConfig, TemplateConfig, TemplateTarget
from sandbox.errors import HostResources, PoolTimeout, StartError
from sandbox.observe.metrics import Metrics
from sandbox.pool.lease import Lease
from sandbox.pool.pool import VMPool
from sandbox.pool.queue import Request
from sandbox.pool.slot import SlotState
from sandbox.vm import VMSource
from tests.agreement import assert_agreement
from tests.fakes.virtual_time import VirtualTimeLoop
from tests.fakes.world import FakeVM, FakeWorld

T = TypeVar("T")
pytestmark = pytest.mark.timeout(900)
STEPS = int(os.environ.get("SANDBOX_MODEL_STEPS", "20000"))
STEPS_EACH = 100
START_SECONDS = 0.2


class PoolMachine(RuleBasedStateMachine):
    """Leases, waiters and VMs as they should be, beside the pool as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.world = FakeWorld(start_seconds=START_SECONDS)
        self.claims: list[asyncio.Task[Lease]] = []
        self.leases: list[Lease] = []
        self.lent: set[str] = set()
        self.beside = 0
        """So many VMs may exist beside the pool's."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def source(self) -> VMSource:
        return cast("VMSource", self.world)

    def waiting(self) -> list[Request]:
        return [request for shelf in self.pool._keeper.shelves.values() for request in shelf.queue._requests]

    def collect(self) -> None:
        """Take over what claims that have ended since gave."""
        for task in [task for task in self.claims if task.done()]:
            self.claims.remove(task)
            if task.cancelled() or isinstance(task.exception(), PoolTimeout | StartError | HostResources):
                continue
            lease = task.result()
            assert lease.vm.name not in self.lent, "a VM was lent twice"
            self.lent.add(lease.vm.name)
            self.leases.append(lease)

    @initialize(
        low=st.integers(0, 3),
        more=st.integers(1, 4),
        other=st.sampled_from([None, None, 0, 1]),
        ttl=st.sampled_from([1.0, 5.0, 600.0]),
        lease_ttl=st.sampled_from([None, None, 3.0]),
        at_once=st.integers(1, 4),
        running=st.integers(0, 4),
    )
    def open(
        self, low: int, more: int, other: int | None, ttl: float, lease_ttl: float | None, at_once: int, running: int
    ) -> None:
        others = {} if other is None else {"other": TemplateTarget(template=TemplateConfig(), min_size=other)}
        config = PoolConfig(
            min_size=low,
            max_size=low + more,
            more=others,
            ttl=ttl,
            lease_ttl=lease_ttl,
            concurrent_starts=at_once,
            max_waiting=6,
            running_ready=running,
        )
        self.metrics = Metrics()
        sources = {name: self.source() for name in ("default", *others)}
        self.pool = VMPool(config, sources=sources, observers=[self.metrics])
        self.run(self.pool.open())

    @rule(timeout=st.sampled_from([None, 0.0, 0.1, 1.0, 10.0]), priority=st.integers(-1, 2), data=st.data())
    def claim(self, timeout: float | None, priority: int, data: st.DataObject) -> None:
        template = data.draw(st.sampled_from(sorted(self.pool._keeper.shelves)))
        self.claims.append(self.loop.create_task(self.pool.claim(timeout, priority=priority, template=template)))
        self.run(asyncio.sleep(0))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.claims)).cancel()
        self.run(asyncio.sleep(0))

    @precondition(lambda self: self.waiting())
    @rule()
    def cancel_at_the_hand_over(self) -> None:
        """Cancel everybody in the very instant in which the first in the queue was given a VM, or a refusal."""
        request = self.waiting()[0]
        for _ in range(1000):
            if request.answered.is_set():
                break
            self.loop.run_one_iteration()
        for task in self.claims:
            task.cancel()
        self.run(asyncio.sleep(0))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), again=st.booleans())
    def release(self, data: st.DataObject, again: bool) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        lease.release_nowait()
        if not again:
            self.leases.remove(lease)

    @precondition(lambda self: any(not lease.has_ended for lease in self.leases))
    @rule(data=st.data(), ttl=st.sampled_from([None, 1.0, 100.0]))
    def renew(self, data: st.DataObject, ttl: float | None) -> None:
        data.draw(st.sampled_from([lease for lease in self.leases if not lease.has_ended])).renew(ttl)

    @precondition(lambda self: self.world.alive)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        victims = sorted(self.world.alive, key=lambda vm: vm.name)
        data.draw(st.sampled_from(victims)).die()

    @rule(count=st.integers(1, 6))
    def let_starts_fail(self, count: int) -> None:
        self.world.fail_next = count

    @rule(room=st.sampled_from([None, 0, 1, 3]))
    def let_the_host_be_full(self, room: int | None) -> None:
        self.world.room = room

    @precondition(lambda self: self.waiting())
    @rule()
    def let_everybody_be_answered(self) -> None:
        """On a host that is well again, whoever waits gets a VM or a reason, if those who have one give it back."""
        self.world.fail_next, self.world.room = 0, None
        for _ in range(2 * len(self.claims) + 2):
            self.collect()
            for lease in self.leases:
                lease.release_nowait()
            self.run(asyncio.sleep(31))
        assert not self.waiting()

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02, 0.1, START_SECONDS, 1.0, 7.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @invariant()
    def sums_come_out_even(self) -> None:
        if not hasattr(self, "pool"):
            return
        for _ in range(3):  # let cancelled tasks end
            self.run(asyncio.sleep(0))
        self.collect()
        record = self.pool.statistics()
        assert record.leased == sum(not lease.has_ended for lease in self.leases), "a lease is held by nobody"
        alive = record.starting + record.ready + record.leased + record.ending
        assert record.created == record.destroyed + alive
        assert record.claimed == record.released + record.lost + record.leased
        assert alive <= self.pool.config.max_size
        assert self.world.most_alive <= self.pool.config.max_size + self.beside
        assert record.waiting <= len(self.claims)

    @invariant()
    def a_lease_that_lost_its_vm_says_so(self) -> None:
        for lease in self.leases:
            vm = cast("FakeVM", lease.vm)
            assert lease.has_ended or (vm.is_alive and not vm.is_paused)

    @invariant()
    def nobody_waits_while_a_vm_is_ready(self) -> None:
        if hasattr(self, "pool"):
            for shelf in self.pool._keeper.shelves.values():
                assert not (len(shelf.queue) and any(slot.is_claimable for slot in shelf.ready))

    @invariant()
    def who_wakes_is_known_without_counting(self) -> None:
        if hasattr(self, "pool"):
            for shelf in self.pool._keeper.shelves.values():
                assert shelf.waking == {slot for slot in shelf.slots if slot.state is SlotState.WAKING}

    def teardown(self) -> None:
        """In the end everything is gone, and whoever still waited was told."""
        if hasattr(self, "pool"):
            self.run(self.pool.aclose())
            self.run(asyncio.sleep(0))
            assert not self.world.alive
            assert self.pool.statistics().created == self.pool.statistics().destroyed
            assert_agreement(self.metrics, self.pool.statistics())
            assert all(task.done() for task in self.claims)
            for task in self.claims:
                task.cancelled() or task.exception()
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()


PoolMachine.TestCase.settings = settings(
    max_examples=max(1, STEPS // STEPS_EACH),
    stateful_step_count=STEPS_EACH,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
test_pool_keeps_its_laws_in_any_order = PoolMachine.TestCase
