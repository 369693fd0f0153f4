"""From the log that a traced QEMU writes of its start to spans.

An event that a QEMU does not know is left out of its log, and the spans that need it are missing then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandbox.trace.span import Span

_LINE = re.compile(r"^\d+@(\d+\.\d{6}):(\w+)(?: (.*))?$")


@dataclass(frozen=True)
class _Event:
    at: float
    name: str
    words: str


def qemu_spans(text: str, forked: float | None, wall_offset: float) -> list[Span]:
    """Return what QEMU did on the host's monotonic clock.

    `forked` and the log's times are of the wall clock, which is `wall_offset` seconds ahead of the monotonic one.
    """
    events = [
        _Event(float(match[1]) - wall_offset, match[2], match[3] or "")
        for match in map(_LINE.match, text.splitlines())
        if match is not None
    ]
    if not events:
        return []
    first = events[0].at
    mapped = _when(events, "find_ram_offset")
    asked = _when(events, "qmp_enter_qmp_capabilities")
    spans = [] if forked is None else [_span("QEMU's process starts", min(forked - wall_offset, first), first)]
    if mapped is not None:
        spans.append(_span("map the memory", first, mapped))
    if asked is not None:
        spans.append(_span("build the machine", mapped or first, asked))
    return spans + _commands(events) + _states(events)


def _commands(events: list[_Event]) -> list[Span]:
    """Return a span for each command of the monitor."""
    spans, entered = [], dict[str, float]()
    for event in events:
        _, way, command = event.name.partition("qmp_enter_")
        if way:
            entered[command] = event.at
        _, way, command = event.name.partition("qmp_exit_")
        if way and (begin := entered.pop(command, None)) is not None:
            spans.append(Span(command.replace("_", "-"), begin, max(begin, event.at), "monitor"))
    return spans


def _states(events: list[_Event]) -> list[Span]:
    """Return the loading of the device state."""
    states = [event for event in events if event.name == "migrate_set_state"]
    began = next((event.at for event in states if event.words.endswith("setup")), None)
    ended = next((event.at for event in states if event.words.endswith("completed")), None)
    return [] if began is None or ended is None else [_span("load the device state", began, ended)]


def _when(events: list[_Event], name: str) -> float | None:
    return next((event.at for event in events if event.name == name), None)


def _span(name: str, begin: float, end: float) -> Span:
    return Span(name, begin, max(begin, end), "qemu")
