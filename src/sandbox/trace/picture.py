"""Spans as one HTML file that needs nothing else: a drawing of the waterfall, whose bars tell more when pointed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from sandbox.trace.row import Row
from sandbox.trace.span import Span

_WIDTH, _LINE, _BARS, _MARGIN = 1100, 20, 700, 20
_COLORS = {"host": "#2563eb", "QEMU": "#d97706", "guest": "#16803c"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222; }
svg { width: 100%; background: #fafafa; } text { font: 12px system-ui, sans-serif; fill: #222; }
.length { text-anchor: end; } .scale { fill: #777; } line { stroke: #ddd; } .shared text { fill: #777; }
.key { color: #fff; padding: .1em .5em; margin-right: .5em; }
"""
_STEPS = 8


def html(title: str, rows: Sequence[Row], facts: Mapping[str, object]) -> str:
    """Return the whole document."""
    said = ", ".join(f"{escape(str(key))} {escape(str(value))}" for key, value in facts.items())
    key = "".join(f'<span class=key style="background:{color}">{place}</span>' for place, color in _COLORS.items())
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{said}</p><p>{key}milliseconds since the first stage began</p>{svg(rows)}\n"
    )


def svg(rows: Sequence[Row]) -> str:
    """Return the drawing: a line for each row, with its name, its length in ms and its bar."""
    height = (len(rows) + 1) * _LINE + 8
    zero = min((row.begin for row in rows), default=0.0)
    length = max((row.end for row in rows), default=0.0) - zero or 1.0
    scale = (_BARS - _MARGIN) / length
    drawn = [f'<svg viewBox="0 0 {_WIDTH} {height}" xmlns="http://www.w3.org/2000/svg">']
    for step in range(_STEPS + 1):
        x = _WIDTH - _BARS + (_BARS - _MARGIN) * step / _STEPS
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_LINE}" y2="{height}"/>')
        label = f"{length * 1000 * step / _STEPS:.0f}"
        drawn.append(f'<text class="scale" x="{x:.1f}" y="14" text-anchor="middle">{label}</text>')
    drawn += [_draw(row, index * _LINE, zero, scale) for index, row in enumerate(rows, start=1)]
    return "".join([*drawn, "</svg>"])


def _draw(row: Row, y: int, zero: float, scale: float) -> str:
    bars = "".join(_bar(row, span, y, zero, scale) for span in row.spans)
    name = f'<text x="{8 + 12 * row.depth}" y="{y + 14}">{escape(row.name)}</text>'
    length = f'<text class="length" x="{_WIDTH - _BARS - 24}" y="{y + 14}">{row.seconds * 1000:.2f}</text>'
    kind = ' class="shared"' if row.is_shared else ""
    return f"<g{kind}>{name}{length}{bars}</g>"


def _bar(row: Row, span: Span, y: int, zero: float, scale: float) -> str:
    x, width = (span.begin - zero) * scale + _WIDTH - _BARS, max(span.seconds * scale, 0.8)
    told = f"{row.place}: {span.name}, {span.seconds * 1000:.3f} ms from {(span.begin - zero) * 1000:.3f} ms on"
    shape = f'x="{x:.2f}" y="{y + 3}" width="{width:.2f}" height="{_LINE - 6}" fill="{_COLORS[row.place]}"'
    return f"<rect {shape}><title>{escape(told)}</title></rect>"
