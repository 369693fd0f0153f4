"""Templates that are only counted: what a pool sees of a series of them, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import anyio

from sandbox.errors import StateNotLoaded, TemplateError
from sandbox.template.drift import Drift
from tests.fakes.world import FakeVM, FakeWorld


class FakeSeries:
    """What is wanted, how long a bake takes, and what has become of each bake."""

    def __init__(self, world: FakeWorld, *, bake_seconds: float = 5.0) -> None:
        self.world = world
        self.bake_seconds = bake_seconds
        self.wanted = "first"
        self.next_is_slow_by = 0.0
        self.next_can_run = True
        self.bake_fails = False
        self.tidy_fails = False
        self.drift_fails: Exception | None = None
        self.broken: set[int] = set()
        """Generations whose state cannot be loaded."""
        self.published: list[int] = []
        self.thrown_away: list[int] = []
        self.bakes_in_progress = 0
        self._numbers = count(2)

    def first(self) -> FakeTemplate:
        return FakeTemplate(self, 1, self.wanted)

    @asynccontextmanager
    async def bake(self, beyond: int) -> AsyncIterator[FakeTemplate]:
        """Give a template that nobody else sees; unless it is published, it is thrown away."""
        number = next(number for number in self._numbers if number > beyond)
        self.bakes_in_progress += 1
        try:
            await anyio.sleep(self.bake_seconds)
            if self.bake_fails:
                raise TemplateError("the series lets this bake fail")
            template = FakeTemplate(self, number, self.wanted, slow_by=self.next_is_slow_by, can_run=self.next_can_run)
            yield template
        finally:
            self.bakes_in_progress -= 1
            if number not in self.published:
                self.thrown_away.append(number)


class FakeCandidate:
    def __init__(self, template: FakeTemplate) -> None:
        self.source = template
        self.was_baked = True

    async def adopt(self) -> FakeTemplate:
        await anyio.sleep(0.01)
        self.source.series.published.append(self.source.generation)
        return self.source


class FakeTemplate:
    """A source of fakes with a number."""

    def __init__(
        self, series: FakeSeries, generation: int, made_for: str, *, slow_by: float = 0.0, can_run: bool = True
    ) -> None:
        self.series = series
        self.generation = generation
        self.made_for = made_for
        self.slow_by = slow_by
        self.can_run = can_run
        self.looks = 0

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[FakeVM]:
        await anyio.sleep(self.slow_by)
        if self.generation in self.series.broken:
            raise StateNotLoaded("QEMU: load of migration failed")
        async with self.series.world.lease() as vm:
            vm.generation = self.generation
            vm.can_run = self.can_run
            yield vm

    def kept(self) -> FakeTemplate:
        return self

    async def drift(self, max_age: float | None) -> Drift | None:
        self.looks += 1
        if self.series.drift_fails is not None:
            raise self.series.drift_fails
        await anyio.sleep(0.001)
        if self.generation in self.series.broken:
            return Drift(("state",), self.series.wanted)
        return None if self.made_for == self.series.wanted else Drift(("image",), self.series.wanted)

    def is_wanted(self, wanted: str) -> bool:
        return self.made_for == wanted

    @asynccontextmanager
    async def successor(self, beyond: int) -> AsyncIterator[FakeCandidate]:
        async with self.series.bake(max(beyond, self.generation)) as template:
            yield FakeCandidate(template)

    async def former(self) -> FakeTemplate:
        raise TemplateError("there is no generation before the first")

    async def tidy(self) -> None:
        """Nothing is on any disk, which may fail."""
        if self.series.tidy_fails:
            raise PermissionError("the series lets nothing be removed")
