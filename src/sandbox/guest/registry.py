"""The executions of one VM by id and by number: those that run, and those that ended lately."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandbox.errors import StateError

if TYPE_CHECKING:
    from sandbox.guest.execution import Execution

KEPT_BYTES = 1024 * 1024
"""Output of ended executions that is kept in memory for who attaches to them; the latest one is always kept."""
KEPT = 256
_OWN = re.compile(r"x([1-9][0-9]{0,17})")
MOST_NAMED = 100_000
"""So many ids of callers' own one VM takes, because it never forgets one: `status` must not call it never started."""


class Registry:
    """Knows every execution that runs, the latest that ended with their output, and the ids of all others.

    Names that we make are `x1`, `x2` and so on, so that the last number tells all that were used.
    """

    def __init__(self) -> None:
        self._running: dict[int, Execution] = {}
        self._kept: OrderedDict[str, Execution] = OrderedDict()
        self._kept_bytes = 0
        self._forgotten: set[str] = set()
        self._by_id: dict[str, Execution] = {}
        self._last_number = 0
        self._last_own = 0
        self._never: set[str] = set()
        self._named = 0

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
        if ident and self.was_used(ident):
            raise StateError(f"an execution {ident!r} was started before in this VM; `attach` gives it")
        if ident and self._named >= MOST_NAMED:
            raise StateError(f"{MOST_NAMED} executions of this VM were given ids; give none, or take another VM")
        self._named += bool(ident)
        self._last_number += 1
        execution = make(self._last_number)
        execution.id = ident or self._own_name()
        self._never.discard(execution.id)
        self._running[execution.number] = self._by_id[execution.id] = execution
        return execution

    def _own_name(self) -> str:
        self._last_own += 1
        while self.was_used(name := f"x{self._last_own}", below=self._last_own):  # a caller took the name
            self._last_own += 1
        return name

    def find(self, ident: str) -> Execution | None:
        """Return the execution with this id, or None if there never was one.

        Raises `StateError` when it has ended so long ago that its result is not kept any more.
        """
        if ident not in self._by_id and self.was_used(ident):
            raise StateError(f"the execution {ident!r} has finished, but so long ago that its result is not kept")
        return self._by_id.get(ident)

    def was_used(self, ident: str, *, below: int | None = None) -> bool:
        """Return whether an execution of this id was ever started. Of our own names the last number tells."""
        if ident in self._by_id or ident in self._forgotten:
            return True
        match = _OWN.fullmatch(ident)
        own = self._last_own + 1 if below is None else below
        return match is not None and int(match[1]) < own and ident not in self._never

    def remove(self, execution: Execution) -> None:
        """Forget an execution that was never sent."""
        self._running.pop(execution.number, None)
        self._by_id.pop(execution.id, None)
        match = _OWN.fullmatch(execution.id)
        if match is not None and int(match[1]) <= self._last_own:
            self._never.add(execution.id)
            while (last := f"x{self._last_own}") in self._never:
                self._never.discard(last)
                self._last_own -= 1

    def end(self, execution: Execution) -> None:
        """Keep an execution that has ended, and let the oldest go."""
        self._running.pop(execution.number, None)
        self._kept[execution.id] = execution
        self._kept_bytes += execution.record.memory  # it has ended: that does not change any more
        while len(self._kept) > 1 and (self._kept_bytes > KEPT_BYTES or len(self._kept) > KEPT):
            ident, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.record.memory
            del self._by_id[ident]
            if not _OWN.fullmatch(ident) or int(ident[1:]) > self._last_own:
                self._forgotten.add(ident)
