"""OpenTelemetry spans: one for each lease, with children for its wait, its VM's restore, and its executions."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from sandbox.event import EventKind, LifeEvent
from sandbox.handle import Handle
from sandbox.observe.extra import missing

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider


class Tracing(Handle):
    """An observer of any number of pools.

        async with VMPool(config, observers=[Tracing()]) as pool: ...

    The span `sandbox.lease` lasts from the call of `claim` to the lease's end and is a child of the span that is
    current where `claim` is called. Its children are `sandbox.queue`, the wait for a VM; `sandbox.restore`, the making
    of that VM, which for a warm one lies before the lease; and `sandbox.execution` for each program. Attributes are
    names and counts, never code, arguments or output. An execution that still runs at the lease's end ends after it.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """Use `provider`, by default the global one. Raises `ConfigError` without `opentelemetry-api`."""
        try:
            from opentelemetry import trace  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise missing("Tracing", "opentelemetry-api", "otel") from error
        self._trace = trace
        self._tracer = trace.get_tracer("sandbox", tracer_provider=provider)
        self._vms: dict[str, _TracedVM] = {}

    def __call__(self, event: LifeEvent) -> None:
        if event.kind is EventKind.VM_STARTED:
            self._vms[event.vm] = _TracedVM(event)
        elif (vm := self._vms.get(event.vm)) is None:  # of the pool, or of a VM that was there before us
            return
        elif event.kind is EventKind.LEASE_BEGAN:
            self._begin(vm, event)
        elif event.kind is EventKind.EXECUTION_STARTED and vm.lease is not None:
            vm.executions[event.execution] = self._child(vm.lease, "sandbox.execution", event, _start(event))
        elif event.kind is EventKind.EXECUTION_ENDED and (span := vm.executions.pop(event.execution, None)) is not None:
            self._end(span, event, is_error=event.fields.get("outcome") != "exited")
        elif event.kind is EventKind.LEASE_ENDED and vm.lease is not None:
            self._end(vm.lease, event, is_error=event.fields.get("why") in ("lost", "killed"))
        elif event.kind is EventKind.ANOMALY and vm.lease is not None:
            vm.lease.add_event("sandbox.anomaly", _attributes(event), _stamp(event))
        elif event.kind is EventKind.VM_DESTROYED:
            for span in vm.executions.values():
                span.end(_stamp(event))
            del self._vms[event.vm]

    def _begin(self, vm: _TracedVM, event: LifeEvent) -> None:
        vm.lease = self._tracer.start_span("sandbox.lease", attributes=_attributes(event), start_time=_start(event))
        self._child(vm.lease, "sandbox.queue", event, _start(event)).end(_stamp(event))
        self._child(vm.lease, "sandbox.restore", vm.started, _start(vm.started)).end(_stamp(vm.started))

    def _child(self, parent: Span, name: str, event: LifeEvent, start: int) -> Span:
        context = self._trace.set_span_in_context(parent)
        return self._tracer.start_span(name, context, attributes=_attributes(event), start_time=start)

    def _end(self, span: Span, event: LifeEvent, *, is_error: bool) -> None:
        span.set_attributes(_attributes(event))
        if is_error:
            fields = event.fields
            said = fields.get("cause") or fields.get("outcome") or fields.get("why")
            span.set_status(self._trace.StatusCode.ERROR, str(said))
        span.end(_stamp(event))


@dataclass
class _TracedVM:
    started: LifeEvent
    lease: Span | None = None
    executions: dict[str, Span] = field(default_factory=dict)


def _attributes(event: LifeEvent) -> dict[str, str | bool | int | float]:
    """Return what of an event is a plain value, below our name."""
    told = event.flat()
    told.pop("seconds", None)
    return {f"sandbox.{name}": value for name, value in told.items() if isinstance(value, str | bool | int | float)}


def _stamp(event: LifeEvent) -> int:
    """Return when it was told, in nanoseconds since 1970."""
    return int(event.at.timestamp() * 1_000_000) * 1000


def _start(event: LifeEvent) -> int:
    """Return when that began which the event tells the duration of."""
    began = event.at - timedelta(seconds=event.seconds or 0.0)
    return int(began.timestamp() * 1_000_000) * 1000
