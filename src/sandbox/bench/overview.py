"""One picture of all times of a run, for people who see one picture only: a standalone SVG."""

from __future__ import annotations

import math
from html import escape

from sandbox.bench.figure import Figure, percentile
from sandbox.bench.targets import target_of

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 860, 330, 90, 34, 22
_DECADES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_BLUE, _GREY, _RED = "#2563eb", "#777", "#a11"


def overview(figures: list[Figure]) -> str:
    """Return a line for each time with more than one sample: p5 to p99, its median as a dot, its target as a mark."""
    times = [figure for figure in figures if figure.unit == "seconds" and len(figure.samples) > 1]
    height = _TOP + _ROW * len(times) + 8
    drawn = [_text(8, 18, "time, in equal ratios: dot = median, line = p5 to p99, red = target of its accelerator")]
    for value in _DECADES:
        x = _across(value)
        label = f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height}" stroke="#e5e5e5"/>')
        drawn.append(_text(x, _TOP - 4, label, "middle"))
    for index, figure in enumerate(times):
        drawn += _line(figure, _TOP + _ROW * (index + 0.7))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>\n'
    )


def _line(figure: Figure, y: float) -> list[str]:
    low, middle, high = (_across(percentile(figure.samples, part)) for part in (5, 50, 99))
    drawn = [
        _text(_LEFT - 10, y + 4, f"{figure.id}  {figure.name}", "end"),
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{_BLUE}" stroke-width="5" opacity=".35"/>',
        f'<circle cx="{middle:.1f}" cy="{y}" r="4.5" fill="{_BLUE}"/>',
        _text(_WIDTH - 8, y + 4, figure.show(figure.p50), "end"),
    ]
    target = target_of(figure)
    bound = (target.p50 or target.most or target.p99) if target is not None else None
    if bound:
        x = _across(bound)
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 8}" y2="{y + 8}" stroke="{_RED}" stroke-width="2"/>')
    return drawn


def _across(seconds: float) -> float:
    first, last = math.log(_DECADES[0]), math.log(_DECADES[-1])
    share = (math.log(max(seconds, _DECADES[0])) - first) / (last - first)
    return _LEFT + min(1.0, share) * (_WIDTH - _LEFT - _RIGHT)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="{_GREY}" text-anchor="{anchor}">{escape(text)}</text>'
