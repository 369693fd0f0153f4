"""Recording what happens while a trace is wanted. When none is, a stage costs one look at a context variable."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field

from sandbox.trace.exchange import Exchange, placed
from sandbox.trace.qemu_log import qemu_spans
from sandbox.trace.span import Span

_current: ContextVar[Recorder | None] = ContextVar("sandbox_trace", default=None)
_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass
class Recorder:
    """Collects spans; any thread may add one."""

    recorded: list[Span] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    qemu_logs: list[tuple[str, float | None]] = field(default_factory=list)

    def add(self, name: str, begin: float, end: float, **facts: object) -> None:
        """Take a span of the host."""
        self.recorded.append(Span(name, begin, end, facts=facts))

    def take_qemu_log(self, text: str, forked: float | None) -> None:
        """Take what one QEMU has written about its start; `forked` is when it was forked, by the wall clock."""
        self.qemu_logs.append((text, forked))

    def spans(self) -> list[Span]:
        """Return all that was recorded, with the guest's stages at their place on the host's clock."""
        ahead = time.time() - time.monotonic()
        qemu = [span for text, forked in self.qemu_logs for span in qemu_spans(text, forked, ahead)]
        return [*self.recorded, *qemu, *placed(self.exchanges)]


class _Stage:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        self._name = name

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *_error: object) -> None:
        self._recorder.add(self._name, self._begin, time.monotonic())


def current() -> Recorder | None:
    """Return the recorder of the trace that is being made here, or None."""
    return _current.get()


def stage(name: str) -> AbstractContextManager[None]:
    """Return a context whose length becomes a span, if a trace is being made."""
    recorder = _current.get()
    return _NOTHING if recorder is None else _Stage(recorder, name)


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record all stages in this context, and in the tasks and worker threads that are started from it."""
    recorder = Recorder()
    token = _current.set(recorder)
    try:
        yield recorder
    finally:
        _current.reset(token)
