"""Tells whoever listens what happens in a pool, and the log in any case."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from sandbox.event import Commentator, EventKind, LifeEvent, Observer
from sandbox.log import log

_LOUD = frozenset(
    {
        EventKind.VM_START_FAILED,
        EventKind.ANOMALY,
        EventKind.TEMPLATE_BAKE_FAILED,
        EventKind.CANARY_FAILED,
        EventKind.TASK_FAILED,
    }
)


class Broadcast:
    """One pool's listeners. One that raises harms neither the pool nor the others; all hear in the same order.

    Whatever a listener raises is logged, `SystemExit` and `KeyboardInterrupt` too: the task that tells is the pool's,
    so there is no caller that they could end.
    """

    def __init__(
        self,
        pool: str,
        observers: Iterable[Observer] = (),
        *,
        end_vm: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.pool = pool
        self._end_vm = end_vm
        self._observers: list[Observer] = []
        self._untold: deque[LifeEvent] = deque()
        self._is_telling = False
        for observer in observers:
            self.add(observer)

    def add(self, observer: Observer) -> Callable[[], None]:
        """Have `observer` called from now on; return what ends that."""
        self._observers.append(observer)
        if isinstance(observer, Commentator):
            observer.join_pool(self.pool, self._pass_on, self._end_vm)
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
        self._pass_on(LifeEvent(kind, self.pool, template, vm, lease, execution, seconds, fields))

    def _pass_on(self, event: LifeEvent) -> None:
        """Tell an event; one that an observer causes meanwhile is told when all have heard this one."""
        self._untold.append(event)
        if self._is_telling:
            return
        self._is_telling = True
        try:
            while self._untold:
                self._tell_all(self._untold.popleft())
        finally:
            self._is_telling = False

    def _tell_all(self, event: LifeEvent) -> None:
        say = log.warning if event.kind in _LOUD or event.fields.get("why") == "lost" else log.debug
        say(event.kind.value, **event.flat())
        for observer in list(self._observers):
            try:
                observer(event)
            except BaseException as error:  # noqa: BLE001 - a caller's hook, `sys.exit` in it too: none of the pool's
                log.error("observer_failed", observer=repr(observer), about=event.kind.value, error=repr(error))
