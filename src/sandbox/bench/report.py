"""A run as one HTML file that needs nothing else: the table, and each figure's samples as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sandbox.bench.curve import curve
from sandbox.bench.figure import Figure, percentile
from sandbox.bench.run import Run
from sandbox.bench.targets import judge, target_of
from sandbox.trace import picture
from sandbox.trace.row import rows as lines
from sandbox.trace.span import Span

_WIDTH, _HEIGHT, _MARGIN = 640, 64, 8
_LINE_SHARE = 1 / 200
"""A stage that takes less of a trace than this shares a line with others."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .2em .6em; text-align: right; }
td:first-child, td:nth-child(2), th:first-child, th:nth-child(2) { text-align: left; }
td:nth-child(4), td:nth-child(5), td:nth-child(6) { white-space: nowrap; }
tr:nth-child(even) { background: #f4f4f4; } .met { color: #176b2c; } .missed { color: #a11; }
svg { background: #fafafa; width: 100%; } figure { margin: 1.5em 0; } figcaption { color: #555; }
"""


def html(measured: Run) -> str:
    """Return the whole document."""
    figures = list(measured.figures.values())
    rows = "".join(_row(figure) for figure in figures)
    waiting = "".join(f"<tr><td>{key}<td>{escape(name)}<td colspan=7>pending" for key, name in measured.pending.items())
    pictures = "".join(_picture(figure) for figure in figures if len(figure.samples) > 1 and figure.live is None)
    points = [figure for figure in figures if figure.live is not None]
    for metric in dict.fromkeys(point.metric for point in points):
        pictures += curve([point for point in points if point.metric == metric])
    traces = f"<h2>Where the time goes</h2><p>{picture.key()}</p>" if measured.traces else ""
    traces += "".join(_trace(name, spans) for name, spans in measured.traces.items())
    said = "".join(f"<p>{escape(note)}</p>" for note in measured.notes)
    return (
        f"<!doctype html><meta charset=utf-8><title>sandbox bench</title><style>{_STYLE}{picture.STYLE}</style>"
        f"<h1>sandbox bench</h1><p>{picture.told(measured.surroundings)}</p>"
        "<table><tr><th>id<th>figure<th>n<th>p50<th>p95<th>p99<th>spread<th>isolates<th>target"
        f"{rows}{waiting}</table>{said}{pictures}{traces}\n"
    )


def _trace(name: str, spans: Sequence[Span]) -> str:
    """Draw one restore or boot stage by stage."""
    length = max((span.end for span in spans), default=0.0) - min((span.begin for span in spans), default=0.0)
    caption = f"<b>{escape(name)}</b> (one of them, after all figures were taken)"
    drawing = picture.svg(lines(spans, length * _LINE_SHARE))
    return f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>"


def _row(figure: Figure) -> str:
    verdict, why = judge(figure)
    times = "".join(f"<td>{figure.show(percentile(figure.samples, part))}" for part in (50, 95, 99))
    said = escape(f"{verdict}: {why}" if why else verdict)
    name = escape(f"{figure.name} — {figure.boundary}")
    cells = f"<td>{figure.id}<td>{name}<td>{len(figure.samples)}{times}<td>{figure.cv:.0%}<td>{escape(figure.isolates)}"
    return f"<tr>{cells}<td class={verdict.split()[0]}>{said}"


def _picture(figure: Figure) -> str:
    """Draw every sample as a stroke, in order of size, the floor's below, and the target as a line."""
    groups = [figure.samples, *([figure.raw_samples] if figure.raw_samples else [])]
    target = target_of(figure)
    bound = next((value for value in (target.p50, target.p99, target.most) if value), None) if target else None
    top = max([*(sample for group in groups for sample in group), bound or 0.0]) or 1.0
    scale = (_WIDTH - 2 * _MARGIN) / top
    drawn = []
    for index, group in enumerate(groups):
        y, color = _MARGIN + index * 26, "#2563eb" if index == 0 else "#9a9a9a"
        for sample in group:
            x = _MARGIN + sample * scale
            drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 20}" stroke="{color}" opacity=".5"/>')
    if bound:
        x = _MARGIN + bound * scale
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}" stroke="#a11" stroke-dasharray="4"/>')
    note = f"0 to {figure.show(top)}; blue: each sample"
    note += "; grey: raw QEMU" if figure.raw_samples else ""
    note += f"; dashed: target, {figure.show(bound)}" if bound else ""
    caption = f"<b>{figure.id}</b> {escape(figure.name)} ({note})"
    body = "".join(drawn)
    return f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{body}</svg></figure>'
