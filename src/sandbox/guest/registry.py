"""The executions of one VM by id and by number: those that run, and those that ended lately."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandbox.errors import StateError

if TYPE_CHECKING:
    from sandbox.guest.execution import Execution

KEPT_BYTES = 1024 * 1024
"""Output of ended executions that is kept in memory for who attaches to them; the latest one is always kept."""
KEPT = 256
REMEMBERED = 100_000
"""So many ids are remembered as used, so that an id is never taken for one that was not started."""


class Registry:
    """Knows every execution that runs, the latest that ended with their output, and the ids of all others."""

    def __init__(self) -> None:
        self._running: dict[int, Execution] = {}
        self._kept: OrderedDict[str, Execution] = OrderedDict()
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self._by_id: dict[str, Execution] = {}
        self._last_number = 0

    @property
    def any_running(self) -> bool:
        return bool(self._running)

    @property
    def any_busy(self) -> bool:
        """Whether a program runs that is no server waiting to be asked."""
        return any(execution.is_busy for execution in self._running.values())

    def all_running(self) -> list[Execution]:
        return list(self._running.values())

    def running(self, number: int) -> Execution | None:
        return self._running.get(number)

    def add(self, make: Callable[[int], Execution], ident: str) -> Execution:
        """Make the execution with the next number; raise `StateError` if its id was used before."""
        if ident and (ident in self._by_id or ident in self._forgotten):
            raise StateError(f"an execution {ident!r} was started before in this VM; `attach` gives it")
        self._last_number += 1
        while not ident and self.was_used(f"x{self._last_number}"):  # a caller took the name that was next
            self._last_number += 1
        execution = make(self._last_number)
        execution.id = ident or f"x{self._last_number}"
        self._running[execution.number] = self._by_id[execution.id] = execution
        return execution

    def find(self, ident: str) -> Execution | None:
        """Return the execution with this id, or None if there never was one.

        Raises `StateError` when it has ended so long ago that its result is not kept any more.
        """
        if ident in self._forgotten:
            raise StateError(f"the execution {ident!r} has finished, but so long ago that its result is not kept")
        return self._by_id.get(ident)

    def was_used(self, ident: str) -> bool:
        return ident in self._by_id or ident in self._forgotten

    def remove(self, execution: Execution) -> None:
        """Forget an execution that was never sent."""
        self._running.pop(execution.number, None)
        self._by_id.pop(execution.id, None)

    def end(self, execution: Execution) -> None:
        """Keep an execution that has ended, and let the oldest go."""
        self._running.pop(execution.number, None)
        self._kept[execution.id] = execution
        size = sum(kept.record.memory for kept in self._kept.values())
        while len(self._kept) > 1 and (size > KEPT_BYTES or len(self._kept) > KEPT):
            ident, oldest = self._kept.popitem(last=False)
            size -= oldest.record.memory
            del self._by_id[ident]
            self._forgotten[ident] = None
        while len(self._forgotten) > REMEMBERED:
            self._forgotten.popitem(last=False)
