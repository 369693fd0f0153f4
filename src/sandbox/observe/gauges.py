"""Sizes and generations of pools, asked for when somebody looks."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sandbox.config import PoolConfig

_STATES = ("starting", "ready", "leased", "ending")
_ANSWER_SECONDS = 1.0


class ByState(Protocol):
    """How many VMs are in which state."""

    @property
    def starting(self) -> int: ...
    @property
    def ready(self) -> int: ...
    @property
    def leased(self) -> int: ...
    @property
    def ending(self) -> int: ...


class Sizes(ByState, Protocol):
    """As much of a pool's statistics as is shown."""

    @property
    def waiting(self) -> int: ...
    @property
    def target(self) -> int: ...


class Generation(ByState, Protocol):
    """As much of a generation's statistics as is shown."""

    @property
    def generation(self) -> int: ...
    @property
    def is_live(self) -> bool: ...


class WatchedPool(Protocol):
    """As much of a pool as is needed to watch it."""

    config: PoolConfig

    @property
    def is_closed(self) -> bool: ...
    def statistics(self, template: str | None = None) -> Sizes: ...
    def generations(self, template: str) -> Sequence[Generation]: ...


@dataclass(frozen=True)
class _Seen:
    """One template's part of a pool at one instant."""

    sizes: Counter[str]
    generations: Counter[int]
    """VMs by generation; the live one is there also when it has none."""
    live: int
    """Of several pools the lowest, so that one that stays behind shows."""

    def __add__(self, other: _Seen) -> _Seen:
        sizes, generations = self.sizes.copy(), self.generations.copy()
        sizes.update(other.sizes)  # `+` would drop what is zero
        generations.update(other.generations)
        return _Seen(sizes, generations, min(self.live, other.live))


class PoolGauges(Collector):
    """Asks every open pool for its statistics, in the thread of the pool's loop, whichever thread collects."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []

    def watch(self, pool: WatchedPool) -> None:
        self._watched.append(_Watched(pool))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        seen: dict[str, _Seen] = {}
        for watched in list(self._watched):
            if watched.is_over:
                self._watched.remove(watched)
                continue
            for template, found in watched.ask().items():
                seen[template] = seen[template] + found if template in seen else found
        yield from _sizes(seen)
        yield from _generations(seen)


def _sizes(seen: dict[str, _Seen]) -> Iterator[GaugeMetricFamily]:
    vms = GaugeMetricFamily("sandbox_vms", "VMs by state.", labels=("template", "state"))
    waiting = GaugeMetricFamily("sandbox_waiting_claims", "Callers that wait for a VM.", labels=("template",))
    target = GaugeMetricFamily("sandbox_target_ready_vms", "So many should be ready.", labels=("template",))
    for template, found in seen.items():
        for state in _STATES:
            vms.add_metric((template, state), found.sizes[state])
        waiting.add_metric((template,), found.sizes["waiting"])
        target.add_metric((template,), found.sizes["target"])
    yield from (vms, waiting, target)


def _generations(seen: dict[str, _Seen]) -> Iterator[GaugeMetricFamily]:
    vms = GaugeMetricFamily(
        "sandbox_generation_vms", "VMs by the generation of their template.", labels=("template", "generation")
    )
    live = GaugeMetricFamily("sandbox_live_generation", "New VMs come from this generation.", labels=("template",))
    for template, found in seen.items():
        for generation, count in sorted(found.generations.items()):
            vms.add_metric((template, str(generation)), count)
        live.add_metric((template,), found.live)
    yield from (vms, live)


class _Watched:
    def __init__(self, pool: WatchedPool) -> None:
        self._pool = weakref.ref(pool)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._templates = ("default", *pool.config.more)
        self._last: dict[str, _Seen] = {}

    @property
    def is_over(self) -> bool:
        pool = self._pool()
        return pool is None or pool.is_closed

    def ask(self) -> dict[str, _Seen]:
        """Return what is seen of each template; what was seen last if the loop does not answer: it is busy or over."""
        if threading.get_ident() == self._thread:
            self._look()
            return self._last
        answered = threading.Event()

        def look() -> None:
            self._look()
            answered.set()

        try:
            self._loop.call_soon_threadsafe(look)
        except RuntimeError:  # the loop is closed
            return self._last
        answered.wait(_ANSWER_SECONDS)
        return self._last

    def _look(self) -> None:
        if (pool := self._pool()) is None:
            return
        found = {}
        for template in self._templates:
            try:
                sizes, generations = pool.statistics(template), pool.generations(template)
            except KeyError:  # the pool is not open yet
                continue
            vms: Counter[int] = Counter()
            for one in generations:
                vms[one.generation] += sum(getattr(one, state) for state in _STATES)
            found[template] = _Seen(
                sizes=Counter({name: getattr(sizes, name) for name in (*_STATES, "waiting", "target")}),
                generations=vms,
                live=next(one.generation for one in generations if one.is_live),
            )
        self._last = found
