"""What is recorded for one trace."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sandbox.trace import stage
from sandbox.trace.exchange import Exchange, GuestStage, placed
from sandbox.trace.qemu_log import qemu_spans
from sandbox.trace.span import Span, Track


class Recorder:
    """Collects what it is told by this process, by QEMU's log and by the guest; any thread may tell it something."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._qemu_logs: list[tuple[str, float | None]] = []
        self._exchanges: list[Exchange] = []

    def add(self, name: str, begin: float, end: float) -> None:
        """Take a span of the host, in seconds of `time.monotonic`."""
        self._spans.append(Span(name, begin, end))

    def add_qemu_log(self, text: str, forked: float | None) -> None:
        """Take what one QEMU has written about its start; `forked` is when it was forked, by the wall clock."""
        self._qemu_logs.append((text, forked))

    def add_exchange(
        self,
        era: tuple[str, int],
        sent: float,
        answered: float,
        stages: Sequence[tuple[str, float]],
        *,
        track: Track = "agent",
        begin: float | None = None,
    ) -> None:
        """Take the guest's stages between a question and its answer: name, and end on the guest's clock; see there."""
        self._exchanges.append(
            Exchange(sent, answered, tuple(GuestStage(*stage) for stage in stages), track, era, begin)
        )

    def spans(self) -> list[Span]:
        """Return all of it, with the guest's stages at their place on the host's clock."""
        ahead = time.time() - time.monotonic()
        qemu = [span for text, forked in self._qemu_logs for span in qemu_spans(text, forked, ahead)]
        return [*self._spans, *qemu, *placed(self._exchanges)]


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record all stages in this context, and in the tasks and worker threads that are started from it."""
    trace = Recorder()
    token = stage.recorder.set(trace)
    try:
        yield trace
    finally:
        stage.recorder.reset(token)
