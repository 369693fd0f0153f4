"""Spans as one HTML file that needs nothing else: a drawing of the waterfall, whose bars tell more when pointed at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from sandbox.trace.row import Row
from sandbox.trace.span import Span

_WIDTH, _LINE, _BARS, _MARGIN = 1100, 20, 640, 20
_INDENT, _LENGTHS, _CHARACTER = 12, 90, 7.0
"""Widths: of a level, of the column of lengths, of a character, generously, for a page does not know its fonts."""
_COLORS = {"host": "#2563eb", "QEMU": "#d97706", "guest": "#16803c"}
STYLE = """
.waterfall { width: 100%; background: #fafafa; }
.waterfall text { font: 12px system-ui, sans-serif; fill: #222; } .waterfall line { stroke: #ddd; }
.waterfall .length { text-anchor: end; } .waterfall .scale, .waterfall .shared text { fill: #777; }
.key { color: #fff; padding: .1em .5em; margin-right: .5em; }
"""
"""What a page with such a drawing needs."""
_PAGE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222; }
"""
_MOST_STEPS = 10


def html(title: str, rows: Sequence[Row], facts: Mapping[str, object]) -> str:
    """Return the whole document."""
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{_PAGE}{STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{told(facts)}</p><p>{key()}</p>{svg(rows)}\n"
    )


def told(facts: Mapping[str, object]) -> str:
    """Return facts as a line of a page."""
    shown = {key: f"{value:.3g}" if isinstance(value, float) else str(value) for key, value in facts.items()}
    return ", ".join(f"{escape(key)} {escape(value)}" for key, value in shown.items())


def key() -> str:
    """Return what the colours and numbers of a drawing mean."""
    places = "".join(f'<span class=key style="background:{color}">{place}</span>' for place, color in _COLORS.items())
    return f"{places}milliseconds since the first stage began"


def svg(rows: Sequence[Row]) -> str:
    """Return the drawing: a line for each row, with its name, its length in ms and its bar."""
    height = (len(rows) + 1) * _LINE + 8
    zero = min((row.begin for row in rows), default=0.0)
    length = max((row.end for row in rows), default=0.0) - zero or 1.0
    scale = (_BARS - _MARGIN) / length
    drawn = [f'<svg class="waterfall" viewBox="0 0 {_WIDTH} {height}" xmlns="http://www.w3.org/2000/svg">']
    for at in _steps(length * 1000):
        x = _WIDTH - _BARS + at / 1000 * scale
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_LINE}" y2="{height}"/>')
        drawn.append(f'<text class="scale" x="{x:.1f}" y="14" text-anchor="middle">{at:g}</text>')
    drawn += [_draw(row, index * _LINE, zero, scale) for index, row in enumerate(rows, start=1)]
    return "".join([*drawn, "</svg>"])


def _steps(length: float) -> list[float]:
    """Return the marks of a scale from 0 to `length`: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(length / _MOST_STEPS))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if length <= power * factor * _MOST_STEPS)
    return [index * step for index in range(int(length / step) + 1)]


def _draw(row: Row, y: int, zero: float, scale: float) -> str:
    bars = "".join(_bar(row, span, y, zero, scale) for span in row.spans)
    x = 8 + _INDENT * row.depth
    room = max(1, int((_WIDTH - _BARS - _LENGTHS - x) / _CHARACTER))
    shown = row.name if len(row.name) <= room else f"{row.name[: room - 1]}…"
    name = f'<text x="{x}" y="{y + 14}">{escape(shown)}<title>{escape(row.name)}</title></text>'
    length = f'<text class="length" x="{_WIDTH - _BARS - 24}" y="{y + 14}">{row.seconds * 1000:.2f}</text>'
    kind = ' class="shared"' if row.is_shared else ""
    return f"<g{kind}>{name}{length}{bars}</g>"


def _bar(row: Row, span: Span, y: int, zero: float, scale: float) -> str:
    x, width = (span.begin - zero) * scale + _WIDTH - _BARS, max(span.seconds * scale, 0.8)
    told = f"{row.place}: {span.name}, {span.seconds * 1000:.3f} ms from {(span.begin - zero) * 1000:.3f} ms on"
    shape = f'x="{x:.2f}" y="{y + 3}" width="{width:.2f}" height="{_LINE - 6}" fill="{_COLORS[row.place]}"'
    return f"<rect {shape}><title>{escape(told)}</title></rect>"
