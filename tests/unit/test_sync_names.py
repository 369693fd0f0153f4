"""The synchronous classes against the asynchronous ones: names, and what each of them takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import sandbox
import sandbox.sync
from sandbox import oneshot

RENAMED = {"aclose": "close"}
FOR_SOURCES = {
    "adopt",
    "call_on_executions",
    "call_when_lost",
    "declare_stopped",
    "on_lost",
    "pause",
    "prepare",
    "quiesce",
    "release",
    "resume",
    "set_defaults",
    "tell_template",
}
"""What those call who make VMs, not those who use them."""
FOR_THE_GUEST_PACKAGE = {
    "account",
    "deliver",
    "feed",
    "follow",
    "is_busy",
    "lose",
    "record",
    "retire",
    "send_input",
    "send_input_nowait",
    "settle",
    "start",
    "stop",
    "take_answers",
    "unfollow",
}
ATTRIBUTES = {"id", "language", "languages", "pid"}
"""What instances have there without a property; here it is asked for at each look."""
PAIRS = [
    (sandbox.VMPool, sandbox.sync.VMPool, {"lease"}),  # which makes it a source; `sandbox.sync.run` takes it as it is
    (sandbox.VM, sandbox.sync.Sandbox, FOR_SOURCES),
    (sandbox.Lease, sandbox.sync.Lease, set()),
    (sandbox.Execution, sandbox.sync.Execution, FOR_THE_GUEST_PACKAGE),
    (sandbox.Context, sandbox.sync.Context, set()),
    (sandbox.Files, sandbox.sync.Files, set()),
]


@pytest.mark.parametrize(("asynchronous", "synchronous", "left_out"), PAIRS, ids=[row[1].__name__ for row in PAIRS])
def test_synchronous_class_has_the_same_names(asynchronous: type, synchronous: type, left_out: set[str]) -> None:
    """Each public name is there, nothing else is, and methods take the same arguments with the same defaults."""
    theirs, ours = _names(asynchronous), _names(synchronous)
    assert left_out <= theirs.keys(), "the control: what is left out exists"
    wanted = {RENAMED.get(name, name): value for name, value in theirs.items() if name not in left_out}
    assert ours.keys() - ATTRIBUTES == wanted.keys() - ATTRIBUTES
    for name, value in wanted.items():
        assert isinstance(ours[name], property) == isinstance(value, property), name
        if not isinstance(value, property):
            assert _arguments(ours[name]) == _arguments(value), name


def test_constructor_and_one_shot_take_the_same() -> None:
    """What is made, or run, without a class in between takes the same arguments, too."""
    assert _arguments(sandbox.sync.VMPool.__init__) == _arguments(sandbox.VMPool.__init__)
    assert _arguments(sandbox.sync.run) == _arguments(oneshot.run)


def _names(owner: type) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in dir(owner) if not name.startswith("_")}


def _arguments(function: Callable[..., Any]) -> list[tuple[str, object, object]]:
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]
