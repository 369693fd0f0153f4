"""Tells whoever listens what happens in a pool, and the log in any case."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sandbox.event import EventKind, LifeEvent, Observer
from sandbox.log import log

_LOUD = frozenset({EventKind.VM_START_FAILED, EventKind.ANOMALY})


class Broadcast:
    """One pool's listeners. One that raises harms neither the pool nor the others."""

    def __init__(self, pool: str, observers: Iterable[Observer] = ()) -> None:
        self.pool = pool
        self._observers = list(observers)

    def add(self, observer: Observer) -> Callable[[], None]:
        """Have `observer` called from now on; return what ends that."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer) if observer in self._observers else None

    def tell(
        self,
        kind: EventKind,
        *,
        template: str = "",
        vm: str = "",
        lease: str = "",
        execution: str = "",
        seconds: float | None = None,
        **fields: object,
    ) -> None:
        event = LifeEvent(kind, self.pool, template, vm, lease, execution, seconds, fields)
        say = log.warning if kind in _LOUD or fields.get("why") == "lost" else log.debug
        say(kind.value, **event.flat())
        for observer in list(self._observers):
            try:
                observer(event)
            except Exception as error:  # noqa: BLE001 - a caller's hook: its mistake must not become the pool's
                log.error("observer_failed", observer=repr(observer), about=kind.value, error=repr(error))
