"""Prometheus metrics of pools: counters and histograms from their events, gauges from their statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandbox.event import EventKind, LifeEvent
from sandbox.handle import Handle
from sandbox.observe.extra import missing

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from sandbox.observe.gauges import PoolGauges, WatchedPool

_WAIT = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_START = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
_WAKE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_LEASE = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
_EXECUTION = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 300, 1800, 3600)


class Metrics(Handle):
    """An observer of any number of pools; all of them add up.

        metrics = Metrics()
        async with VMPool(config, observers=[metrics]) as pool:
            metrics.watch(pool)
            prometheus_client.start_http_server(9100, registry=metrics.registry)

    Labels take their values from names of templates and from lists of ours, never from a guest or from a VM's name,
    so the number of series is bounded. Durations are in seconds.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Register with `registry`, by default one of its own, never the global one.

        The first one in a process imports `prometheus-client`, which takes some 50 ms and reads files. Raises
        `ConfigError` when that is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry, Counter, Histogram  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise missing("Metrics", "prometheus-client", "metrics") from error
        from sandbox.observe.gauges import PoolGauges  # noqa: PLC0415 - needs the same package

        self.registry = CollectorRegistry() if registry is None else registry

        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(f"sandbox_{name}", said, ("template", *labels), registry=self.registry)

        def histogram(name: str, said: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                f"sandbox_{name}_seconds", said, ("template", *labels), buckets=buckets, registry=self.registry
            )

        self._events = counter("events", "Events of every kind.", "kind")
        self._claims = counter("claims", "Claims that were given a VM.", "hit")
        self._refusals = counter("claim_refusals", "Claims that ended without a VM, cancelled ones too.", "code")
        self._wait = histogram("claim_wait", "From the call to the VM.", _WAIT)
        self._start = histogram("vm_start", "From the order of a VM to ready.", _START)
        self._failures = counter("vm_start_failures", "VMs that did not become ready.", "code")
        self._abandoned = counter("vm_starts_abandoned", "Starts that were given up because the pool closed.")
        self._pauses = counter("vm_pauses", "Ready VMs that were paused.")
        self._wake = histogram("vm_wake", "From waking a paused VM to ready.", _WAKE)
        self._deaths = counter("vm_deaths", "VMs that had been ready and are gone.", "leased", "why", "cause")
        self._leases = counter("leases_ended", "Leases that are over.", "why", "cause")
        self._held = histogram("lease", "From claim to the lease's end.", _LEASE)
        self._begun = counter("executions_started", "Programs that were sent to a guest.")
        self._ended = counter("executions_ended", "Programs that ended.", "outcome", "cause")
        self._ran = histogram("execution", "From sending a program to its end.", _EXECUTION)
        self._output = counter("execution_output_bytes", "What programs have written on both streams.")
        self._cpu = counter("execution_cpu_seconds", "Processor time of programs, as their guests tell it.")
        self._anomalies = counter("anomalies", "What the rules found.", "rule", "did")
        self._gauges: PoolGauges = PoolGauges()
        self.registry.register(self._gauges)
        self._handlers: dict[EventKind, Callable[[LifeEvent], object]] = {
            EventKind.LEASE_BEGAN: self._on_claim,
            EventKind.CLAIM_REFUSED: lambda event: self._refusals.labels(event.template, _text(event, "code")).inc(),
            EventKind.VM_STARTED: lambda event: self._start.labels(event.template).observe(event.seconds or 0.0),
            EventKind.VM_START_FAILED: lambda event: self._failures.labels(event.template, _text(event, "code")).inc(),
            EventKind.VM_START_ABANDONED: lambda event: self._abandoned.labels(event.template).inc(),
            EventKind.VM_PAUSED: lambda event: self._pauses.labels(event.template).inc(),
            EventKind.VM_WOKEN: lambda event: self._wake.labels(event.template).observe(event.seconds or 0.0),
            EventKind.VM_DESTROYED: self._on_death,
            EventKind.LEASE_ENDED: self._on_lease_end,
            EventKind.EXECUTION_STARTED: lambda event: self._begun.labels(event.template).inc(),
            EventKind.EXECUTION_ENDED: self._on_execution_end,
            EventKind.ANOMALY: self._on_anomaly,
        }

    def __call__(self, event: LifeEvent) -> None:
        self._events.labels(event.template, event.kind.value).inc()
        if (handler := self._handlers.get(event.kind)) is not None:
            handler(event)

    def watch(self, pool: WatchedPool) -> None:
        """Have gauges tell the pool's sizes from now on, until it is closed. Call it where the pool's loop runs."""
        self._gauges.watch(pool)

    def text(self) -> str:
        """Return all of it in Prometheus' text format. In another thread it waits for the pool's loop, 1 s at most."""
        from prometheus_client import generate_latest  # noqa: PLC0415 - an extra

        return generate_latest(self.registry).decode()

    def _on_claim(self, event: LifeEvent) -> None:
        self._claims.labels(event.template, "true" if event.fields.get("hit") else "false").inc()
        self._wait.labels(event.template).observe(event.seconds or 0.0)

    def _on_death(self, event: LifeEvent) -> None:
        leased = "true" if event.lease else "false"
        self._deaths.labels(event.template, leased, _text(event, "why"), _text(event, "cause")).inc()

    def _on_lease_end(self, event: LifeEvent) -> None:
        self._leases.labels(event.template, _text(event, "why"), _text(event, "cause")).inc()
        self._held.labels(event.template).observe(event.seconds or 0.0)

    def _on_execution_end(self, event: LifeEvent) -> None:
        self._ended.labels(event.template, _text(event, "outcome"), _text(event, "cause")).inc()
        self._ran.labels(event.template).observe(event.seconds or 0.0)
        self._output.labels(event.template).inc(_number(event, "output_bytes"))
        self._cpu.labels(event.template).inc(_number(event, "cpu_seconds"))

    def _on_anomaly(self, event: LifeEvent) -> None:
        self._anomalies.labels(event.template, _text(event, "rule"), _text(event, "did")).inc()


def _text(event: LifeEvent, name: str) -> str:
    value = event.fields.get(name)
    return "" if value is None else str(value)


def _number(event: LifeEvent, name: str) -> float:
    """Return a number that may come from a guest: finite, and never below 0, or the counter would be spoilt."""
    value = event.fields.get(name)
    return max(0.0, float(value)) if isinstance(value, int | float) and math.isfinite(value) else 0.0
