"""Functions of the guest's agent that Python does not show."""

from __future__ import annotations

import importlib.util
import sys
import traceback
import warnings
from typing import Any

import pytest

from sandbox.paths import resource


@pytest.fixture
def hidden() -> Any:
    """The decorator."""
    spec = importlib.util.spec_from_file_location("hidden", resource("guest_agent") / "hidden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.hidden


def _names() -> list[str]:
    return [frame.name for frame in traceback.extract_stack()]


def _fail() -> None:
    raise LookupError("deep")


def test_a_hidden_frame_is_in_no_stack_and_no_trace(hidden: Any) -> None:
    """It works as any function, and what it calls sees the caller above it."""

    def between(call: Any) -> Any:
        return call()

    assert "between" in _shown(between)
    assert "between" not in _shown(hidden(between))
    with pytest.raises(LookupError) as caught:
        hidden(between)(_fail)
    assert "between" not in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


def _shown(between: Any) -> list[str]:
    return between(_names)  # type: ignore[no-any-return]


def test_a_hidden_function_catches_and_warns_as_others(hidden: Any) -> None:
    """Handlers in it work, and a warning that is one level up names its caller."""

    def guarded(call: Any) -> object:
        try:
            return call()
        except LookupError as error:
            return error

    assert isinstance(hidden(guarded)(_fail), LookupError)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        hidden(guarded)(lambda: warnings.warn("here", stacklevel=2))
    assert told[0].filename == __file__
    assert told[0].lineno < sys._getframe().f_lineno
