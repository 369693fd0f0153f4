"""Telling a trace what is being done. When none is wanted, that costs one look at a context variable."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what makes traces is imported by who makes them
    from sandbox.trace.recorder import Recorder

recorder: ContextVar[Recorder | None] = ContextVar("sandbox_trace", default=None)
"""The recorder of the trace that is being made here, or None. Tasks and worker threads inherit it."""
_NOTHING: AbstractContextManager[None] = nullcontext()


class _Stage:
    def __init__(self, trace: Recorder, name: str) -> None:
        self._trace = trace
        self._name = name

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *_error: object) -> None:
        self._trace.add(self._name, self._begin, time.monotonic())


def stage(name: str) -> AbstractContextManager[None]:
    """Return a context whose length becomes a span of the host, if a trace is being made."""
    trace = recorder.get()
    return _NOTHING if trace is None else _Stage(trace, name)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Record nothing in this context: what is done for the trace's own sake."""
    token = recorder.set(None)
    try:
        yield
    finally:
        recorder.reset(token)
