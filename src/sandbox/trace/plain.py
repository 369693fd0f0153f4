"""Spans as plain data, to be kept in a document and drawn again later."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from sandbox.trace.span import TRACKS, Span


def as_plain(spans: Iterable[Span]) -> list[dict[str, object]]:
    """Return a record for each span in order of their begin, in seconds since the first of them began."""
    spans = sorted(spans, key=lambda span: (span.begin, -span.end))
    zero = spans[0].begin if spans else 0.0
    return [
        {"name": span.name, "track": span.track, "begin": span.begin - zero, "end": span.end - zero} for span in spans
    ]


def from_plain(records: Iterable[Any]) -> list[Span]:
    """Return the spans of such records; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    return [_span(record) for record in records]


def _span(record: Any) -> Span:
    begin, end, track = float(record["begin"]), float(record["end"]), record["track"]
    if not 0.0 <= begin <= end < math.inf or track not in TRACKS:
        raise ValueError(f"{record} is no span")
    return Span(str(record["name"]), begin, end, track)
