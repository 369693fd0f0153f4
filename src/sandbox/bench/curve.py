"""A picture of one metric against the number of idle VMs: its median and its tail."""

from __future__ import annotations

import math
from html import escape

from sandbox.bench.figure import Figure, percentile

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 640, 220, 70, 24, 12
_LINES = ((50, "#2563eb"), (95, "#7aa2e8"), (99, "#9a9a9a"))
_WIDE = 10.0
"""Where the tail is so many times the median, equal lengths upwards are equal ratios, or the median would be flat."""


def curve(points: list[Figure]) -> str:
    """Return a metric's points as one drawing: VMs to the right in equal ratios, values upwards from 0 if they fit."""
    points = sorted(points, key=lambda point: point.live or 0)
    medians = [point.p50 for point in points]
    top = max(point.p99 for point in points) or 1.0
    bottom = min(medians) / 2 if min(medians) > 0 and top > _WIDE * max(medians) else 0.0
    widest = math.log(max(2, points[-1].live or 0))
    span, rise = _WIDTH - _LEFT - _MARGIN, _HEIGHT - _BOTTOM - _MARGIN

    def across(point: Figure) -> float:
        return _LEFT + math.log(point.live or 1) / widest * span

    def up(value: float) -> float:
        share = math.log(value / bottom) / math.log(top / bottom) if bottom else value / top
        return _HEIGHT - _BOTTOM - share * rise

    drawn = []
    for value in (bottom, math.sqrt(bottom * top) or top / 2, top):
        y = up(value)
        drawn.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        drawn.append(_label(_LEFT - 6, y + 4, points[0].show(value), "end"))
    drawn += [_label(across(point), _HEIGHT - 6, str(point.live), "middle") for point in points]
    for percent, color in reversed(_LINES):
        marks = [(across(point), up(percentile(point.samples, percent))) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in marks)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in marks]
    name = points[0].metric
    boundary = escape(points[0].boundary)
    caption = f"<b>{name}</b> against idle VMs: {boundary} (blue: p50; light blue: p95; grey: p99)"
    body = "".join(drawn)
    return f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{body}</svg></figure>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="#555" text-anchor="{anchor}">{escape(text)}</text>'
