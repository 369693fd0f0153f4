"""The executions of one VM by id: never two of one name, never forgotten too early, never kept without bound."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sandbox.errors import StateError
from sandbox.guest.execution import Execution
from sandbox.guest.registry import KEPT, KEPT_BYTES, MOST_NAMED, Registry

IDS = st.sampled_from(["", "a", "b", "x1", "x2", "x3", "x10"])


def _add(registry: Registry, ident: str = "", memory: int = 0) -> Execution:
    """The registry asks of an execution no more than this."""
    record = SimpleNamespace(memory=memory)

    def make(number: int) -> Execution:
        return cast("Execution", SimpleNamespace(id=ident, number=number, record=record, is_busy=True))

    return registry.add(make, ident)


class RegistryMachine(RuleBasedStateMachine):
    """What a plain list of everything that ever happened would say."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.used: set[str] = set()
        self.running: list[Execution] = []
        self.ended: list[Execution] = []

    @rule(ident=IDS, memory=st.sampled_from([0, 1000, KEPT_BYTES // 2, 2 * KEPT_BYTES]))
    def add(self, ident: str, memory: int) -> None:
        if ident in self.used and ident:
            with pytest.raises(StateError):
                _add(self.registry, ident)
            return
        execution = _add(self.registry, ident, memory)
        assert execution.id
        assert execution.id not in self.used
        assert not ident or execution.id == ident
        self.used.add(execution.id)
        self.running.append(execution)

    @rule(data=st.data())
    def end(self, data: Any) -> None:
        if self.running:
            execution = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            self.registry.end(execution)
            self.ended.append(execution)

    @rule()
    def remove(self) -> None:
        if self.running:
            execution = self.running.pop()
            self.registry.remove(execution)
            self.used.discard(execution.id)

    @invariant()
    def agrees(self) -> None:
        registry = self.registry
        assert registry.all_running() == self.running
        assert registry.any_running == bool(self.running)
        assert len({execution.number for execution in [*self.running, *self.ended]}) == len(self.running + self.ended)
        for execution in self.running:
            assert registry.running(execution.number) is execution
            assert registry.find(execution.id) is execution
        for ident in ["a", "b", "x1", "x2", "x3", "x10", "never"]:
            assert registry.was_used(ident) == (ident in self.used)
        if self.ended:
            assert registry.find(self.ended[-1].id) is self.ended[-1], "the latest is always kept"
            assert registry.running(self.ended[-1].number) is None
        kept = [execution.record.memory for execution in registry._kept.values()]
        assert len(kept) <= 1 or sum(kept) <= KEPT_BYTES


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def test_memory_is_bounded_over_many_executions() -> None:
    """Of very many executions the latest are there, and all others are known by name, which costs nothing."""
    registry = Registry()
    for _ in range(MOST_NAMED + 2 * KEPT):
        registry.end(_add(registry))
    last = MOST_NAMED + 2 * KEPT
    assert registry.find(f"x{last}") is not None
    for old in (1, last - KEPT):
        assert registry.was_used(f"x{old}")
        with pytest.raises(StateError, match="not kept"):
            registry.find(f"x{old}")
    assert not registry.was_used(f"x{last + 1}")
    assert len(registry._by_id) == KEPT
    assert not registry._forgotten


def test_names_of_callers_are_never_forgotten() -> None:
    """So that none is ever called never started; their number has an end, which is told."""
    registry = Registry()
    for number in range(MOST_NAMED):
        registry.end(_add(registry, f"job {number}"))
    assert registry.was_used("job 0")
    with pytest.raises(StateError, match="another VM"):
        _add(registry, "one more")
    registry.end(_add(registry))


def test_own_name_never_takes_one_of_the_caller() -> None:
    """A call that gives no id is never refused for one, though a caller took the next name that would be made."""
    registry = Registry()
    _add(registry, "x1")
    assert _add(registry).id == "x2"
    _add(registry, "x4")
    assert [_add(registry).id for _ in range(2)] == ["x3", "x5"]
