"""Spans as a picture in text: one line each, with its begin, its length and a bar on a common scale."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from sandbox.trace.row import Row

_COLORS = {"host": "blue", "QEMU": "yellow", "guest": "green"}
_FIXED = 28
"""Characters that are taken by all but name and bar."""
_SHORTEST_BAR = 20
_LONGEST_NAME = 48


def waterfall(rows: Sequence[Row], width: int, *, block: str, sliver: str) -> Table:
    """Return the picture, `width` characters wide. What is shorter than a character is a `sliver`."""
    names = [_shortened(" " * row.depth + row.name) for row in rows]
    cells = max(_SHORTEST_BAR, width - _FIXED - max(map(len, names), default=0))
    zero = min((row.begin for row in rows), default=0.0)
    length = max((row.end for row in rows), default=0.0) - zero
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), width=width)
    table.add_column("where", no_wrap=True)
    table.add_column("stage", no_wrap=True, overflow="ellipsis")
    table.add_column("begin", justify="right", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column(f"0 to {_milliseconds(length)} ms", no_wrap=True, min_width=cells)
    for row, name in zip(rows, names, strict=True):
        style = "dim" if row.is_shared else ""
        bar = _bar(row, zero, cells / (length or 1.0), block, sliver)
        numbers = [Text(_milliseconds(seconds), style) for seconds in (row.begin - zero, row.seconds)]
        table.add_row(Text(row.place, style), Text(name, style), *numbers, Text(bar, _COLORS[row.place]))
    return table


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _bar(row: Row, zero: float, scale: float, block: str, sliver: str) -> str:
    drawn = ""
    for span in row.spans:
        begin, end = round((span.begin - zero) * scale), round((span.end - zero) * scale)
        if end > begin:
            drawn = drawn[:begin].ljust(begin) + block * (end - begin)
        else:
            at = int((span.begin - zero) * scale)
            drawn = drawn if len(drawn) > at else drawn.ljust(at) + sliver
    return drawn


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"
