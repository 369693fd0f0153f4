"""Sizes of pools, asked for when somebody looks."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sandbox.config import PoolConfig

_STATES = ("starting", "ready", "leased", "ending")
_ANSWER_SECONDS = 1.0


class Sizes(Protocol):
    """As much of a pool's statistics as is shown."""

    @property
    def starting(self) -> int: ...
    @property
    def ready(self) -> int: ...
    @property
    def leased(self) -> int: ...
    @property
    def ending(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def target(self) -> int: ...


class WatchedPool(Protocol):
    """As much of a pool as is needed to watch it."""

    config: PoolConfig

    @property
    def is_closed(self) -> bool: ...
    def statistics(self, template: str | None = None) -> Sizes: ...


class PoolGauges(Collector):
    """Asks every open pool for its statistics, in the thread of the pool's loop, whichever thread collects."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []

    def watch(self, pool: WatchedPool) -> None:
        self._watched.append(_Watched(pool))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        sizes: dict[str, dict[str, int]] = {}
        for watched in list(self._watched):
            if watched.is_over:
                self._watched.remove(watched)
                continue
            for template, found in watched.ask().items():
                total = sizes.setdefault(template, dict.fromkeys(found, 0))
                for name, number in found.items():
                    total[name] += number
        vms = GaugeMetricFamily("sandbox_vms", "VMs by state.", labels=("template", "state"))
        waiting = GaugeMetricFamily("sandbox_waiting_claims", "Callers that wait for a VM.", labels=("template",))
        target = GaugeMetricFamily("sandbox_target_ready_vms", "So many should be ready.", labels=("template",))
        for template, found in sizes.items():
            for state in _STATES:
                vms.add_metric((template, state), found[state])
            waiting.add_metric((template,), found["waiting"])
            target.add_metric((template,), found["target"])
        yield from (vms, waiting, target)


class _Watched:
    def __init__(self, pool: WatchedPool) -> None:
        self._pool = weakref.ref(pool)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._templates = ("default", *pool.config.more)
        self._last: dict[str, dict[str, int]] = {}

    @property
    def is_over(self) -> bool:
        pool = self._pool()
        return pool is None or pool.is_closed

    def ask(self) -> dict[str, dict[str, int]]:
        """Return sizes by template. The last known ones if the loop does not answer: it is busy, or has ended."""
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
                sizes = pool.statistics(template)
            except KeyError:  # the pool is not open yet
                continue
            found[template] = {name: getattr(sizes, name) for name in (*_STATES, "waiting", "target")}
        self._last = found
