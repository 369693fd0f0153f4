"""Spans as trace-event JSON, which Perfetto and Chrome's `about:tracing` show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sandbox.trace.span import Span, Track

PLACES: Mapping[Track, tuple[int, str, int, str]] = {
    "host": (1, "host", 1, "sandbox"),
    "qemu": (2, "QEMU", 1, "main loop"),
    "monitor": (2, "QEMU", 2, "monitor commands"),
    "boot": (3, "guest", 1, "boot"),
    "agent": (3, "guest", 2, "agent"),
    "program": (3, "guest", 3, "program"),
}
"""Process and thread, each as number and name, that stand for a track."""


def event_json(spans: Iterable[Span], facts: Mapping[str, object]) -> dict[str, object]:
    """Return the document: complete events in microseconds since the first span began, and `facts` beside them."""
    spans = sorted(spans, key=lambda span: (span.begin, -span.end))
    zero = spans[0].begin if spans else 0.0
    used = dict.fromkeys(span.track for span in spans)
    names = [event for track, place in PLACES.items() if track in used for event in _names(place)]
    events = [
        {
            "name": span.name,
            "cat": span.track,
            "ph": "X",
            "ts": (span.begin - zero) * 1e6,
            "dur": span.seconds * 1e6,
            "pid": PLACES[span.track][0],
            "tid": PLACES[span.track][2],
        }
        for span in spans
    ]
    return {"traceEvents": names + events, "displayTimeUnit": "ms", "otherData": dict(facts)}


def _names(place: tuple[int, str, int, str]) -> list[dict[str, object]]:
    pid, process, tid, thread = place
    at: dict[str, object] = {"ph": "M", "pid": pid, "tid": tid}
    return [
        at | {"name": "process_name", "args": {"name": process}},
        at | {"name": "process_sort_index", "args": {"sort_index": pid}},
        at | {"name": "thread_name", "args": {"name": thread}},
    ]
