"""What is recorded for one trace."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from sandbox.trace import stage
from sandbox.trace.boot import Boot
from sandbox.trace.exchange import Exchange, GuestStage, placed
from sandbox.trace.qemu_log import qemu_spans
from sandbox.trace.span import Span, Track


class Recorder:
    """Collects what it is told by this process, by QEMU's log and by the guest; any thread may tell it something."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._qemu_logs: list[tuple[str, float | None]] = []
        self._exchanges: list[Exchange] = []
        self._boots: list[Boot] = []

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

    def add_boot(self, machine: str) -> Boot:
        """Return what takes the words of a machine that was started just now, and boots."""
        boot = Boot(machine, time.monotonic())
        self._boots.append(boot)
        return boot

    def spans(self) -> list[Span]:
        """Return all of it, with the guest's stages at their place on the host's clock."""
        ahead = time.time() - time.monotonic()
        qemu = [span for text, forked in self._qemu_logs for span in qemu_spans(text, forked, ahead)]
        boots = [span for boot in self._boots for span in boot.spans(_begin(boot, qemu))]
        return [*self._spans, *qemu, *boots, *placed(map(self._heard, self._exchanges))]

    def _heard(self, exchange: Exchange) -> Exchange:
        """Return the exchange as of when the guest could hear the question, which may have waited for it to boot."""
        up = next((boot.up for boot in self._boots if boot.machine == exchange.era[0]), None)
        if up is None or not exchange.sent < up <= exchange.answered:
            return exchange
        return replace(exchange, sent=up)


def _begin(boot: Boot, qemu: Sequence[Span]) -> float:
    """Return when the processors of this machine began to run: with the last `cont` before it was said to run."""
    return max((span.end for span in qemu if span.name == "cont" and span.end <= boot.started), default=boot.started)


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record all stages in this context, and in the tasks and worker threads that are started from it."""
    trace = Recorder()
    token = stage.recorder.set(trace)
    try:
        yield trace
    finally:
        stage.recorder.reset(token)
