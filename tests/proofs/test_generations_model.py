"""The same model of a pool, over templates that drift, fail, are rolled over and rolled back in any order."""

from __future__ import annotations

import asyncio
import os
from itertools import count
from typing import cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from sandbox.errors import SandboxError
from sandbox.vm import VMSource
from tests.adversity import test_pool_model
from tests.fakes.generations import FakeSeries

pytestmark = pytest.mark.timeout(900)
STEPS = int(os.environ.get("SANDBOX_MODEL_STEPS", "20000"))


class GenerationMachine(test_pool_model.PoolMachine):
    """Any order of what a pool's callers do and of what happens to its template; canaries are beside the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = 2  # a canary of each template
        self.series = FakeSeries(self.world, bake_seconds=3.0)
        self.wanted = count(1)
        self.orders: list[asyncio.Task[int]] = []

    def source(self) -> VMSource:
        return cast("VMSource", self.series.first())

    @rule()
    def drift(self) -> None:
        self.series.wanted = f"another {next(self.wanted)}"

    @rule(fails=st.booleans(), slow_by=st.sampled_from([0.0, 0.0, 2.0]), can_run=st.booleans())
    def let_successors_be(self, fails: bool, slow_by: float, can_run: bool) -> None:
        self.series.bake_fails, self.series.next_is_slow_by, self.series.next_can_run = fails, slow_by, can_run

    @rule()
    def roll_over(self) -> None:
        self.orders.append(self.loop.create_task(self.pool.roll_over()))
        self.run(asyncio.sleep(0))

    @rule()
    def roll_back(self) -> None:
        self.orders.append(self.loop.create_task(self.pool.roll_back()))
        self.run(asyncio.sleep(0))

    @rule(data=st.data())
    def turn_away(self, data: st.DataObject) -> None:
        if self.orders:
            data.draw(st.sampled_from(self.orders)).cancel()
            self.run(asyncio.sleep(0))

    @rule()
    def let_checks_pass(self) -> None:
        self.run(asyncio.sleep(100.0))

    @invariant()
    def one_generation_is_live_and_counts_come_out_even(self) -> None:
        if hasattr(self, "pool"):
            generations = self.pool.generations()
            record = self.pool.statistics("default")
            assert [generation.is_live for generation in generations] == [True] + [False] * (len(generations) - 1)
            for state in ("starting", "ready", "leased", "ending"):
                assert sum(getattr(generation, state) for generation in generations) == getattr(record, state)
            assert self.series.bakes_in_progress <= len(self.pool._keeper.shelves)
            assert not set(self.series.published) & set(self.series.thrown_away)

    def teardown(self) -> None:
        if self.orders:  # a look at the former generation may be under way
            self.run(self.pool.aclose())
            self.run(asyncio.wait(self.orders, timeout=1.0))
        super().teardown()
        assert self.series.bakes_in_progress == 0
        for order in self.orders:
            assert order.done()
            assert order.cancelled() or order.exception() is None or isinstance(order.exception(), SandboxError)


GenerationMachine.TestCase.settings = settings(
    max_examples=max(1, STEPS // test_pool_model.STEPS_EACH),
    stateful_step_count=test_pool_model.STEPS_EACH,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
test_pool_keeps_its_laws_while_generations_change = GenerationMachine.TestCase
