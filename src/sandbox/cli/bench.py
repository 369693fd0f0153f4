"""`sandbox bench`: measure figures, curves, and other ways to run code; then compare, judge, draw."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sandbox.bench.compare import Change, compare
from sandbox.bench.environment import environment
from sandbox.bench.figure import Figure
from sandbox.bench.gate import TOLERANCE, incomparable, missed_targets, regressions, tolerance
from sandbox.bench.overview import overview
from sandbox.bench.peers import measure_peers
from sandbox.bench.report import html
from sandbox.bench.run import Run
from sandbox.bench.scaling import METRICS, measure_curves
from sandbox.bench.suite import FIGURES, LONG, Suite, pending
from sandbox.bench.traces import explaining, take_traces
from sandbox.cli.figures import Form, print_figures
from sandbox.cli.report_file import check_report_file, write_report_file
from sandbox.cli.run import complain, report, run
from sandbox.config import HostConfig, TemplateConfig
from sandbox.errors import ConfigError, SandboxError
from sandbox.log import log
from sandbox.template.template import Template
from sandbox.trace.span import Span

MISSED = 1
_BUSY = 0.5
_ENOUGH = 3


@dataclass(frozen=True)
class BenchRequest:
    """What the command line asked for."""

    only: str | None
    samples: int | None
    form: Form
    html: Path | None
    compare: Path | None
    gate: bool
    scaling: bool = False
    up_to: int = 400
    peers: bool = False
    svg: Path | None = None
    recorded: Path | None = None


@dataclass(frozen=True)
class _Wanted:
    figures: list[str]
    curves: list[str]
    peers: bool


def run_bench(request: BenchRequest) -> int:
    """Measure and print; return 1 if `gate` is set and a target is missed, or a figure is worse than before."""
    try:
        check_report_file("--html", request.html)
        check_report_file("--svg", request.svg)
        wanted = _wanted(request.only, scaling=request.scaling, peers=request.peers)
        before = Run.load(request.compare) if request.compare is not None else Run({}, {}, {})
        if request.recorded is not None:
            return _show_recorded(Run.load(request.recorded), before, request)
    except SandboxError as error:
        return report(error, status=2)
    return run(_bench(wanted, before, request))


def _wanted(only: str | None, *, scaling: bool = False, peers: bool = False) -> _Wanted:
    """Return what to measure. Curves and peers are measured instead of the figures, unless those are named, too."""
    if scaling:
        asked = _chosen(only, list(METRICS)) if only is not None else list(METRICS)
        return _Wanted([], asked, peers)
    lacking = pending()
    there = [ident for ident in FIGURES if ident not in lacking]
    if only is None:
        return _Wanted([] if peers else [ident for ident in there if ident not in LONG], [], peers)
    return _Wanted(_chosen(only, there), [], peers)


def _chosen(only: str, existing: list[str]) -> list[str]:
    asked = [ident.strip().upper() for ident in only.split(",") if ident.strip()]
    unknown = [name for name in asked if not any(_is_meant(name, ident) for ident in existing)]
    lacking = pending()
    if waiting := [f"{name} ({lacking[name]})" for name in unknown if name in lacking]:
        raise ConfigError(f"pending: {', '.join(waiting)}")
    if unknown or not asked:
        raise ConfigError(f"no such figure: {', '.join(unknown)}; there are {', '.join(existing)}")
    return [ident for name in asked for ident in existing if _is_meant(name, ident)]


def _is_meant(name: str, ident: str) -> bool:
    """Whether `name` is this figure, or its group: A stands for A1 to A4, E6 for E6UP and E6DOWN."""
    if name.isalpha() and len(name) == 1:
        return ident.startswith(name) and ident not in LONG
    return ident == name or (ident.startswith(name) and ident[len(name) :].isalpha() and name[-1].isdigit())


def _show_recorded(recorded: Run, before: Run, request: BenchRequest) -> int:
    """Print and draw a recorded run, or the figures of it that were asked for."""
    existing = list(recorded.figures)
    asked = existing if request.only is None else _chosen(request.only, existing)
    traces = {name: spans for name, spans in recorded.traces.items() if name in explaining(asked)}
    shown = replace(recorded, figures={ident: recorded.figures[ident] for ident in asked}, traces=traces)
    _tell(shown, request)
    for change in compare(list(shown.figures.values()), before.figures):
        complain(str(change))
    return 0


async def _bench(wanted: _Wanted, before: Run, request: BenchRequest) -> int:
    load = os.getloadavg()[0]
    template = await Template.ensure(TemplateConfig(), HostConfig())
    surroundings = _surroundings(template, load)
    suite, figures = Suite(template, request.samples, log.progress), list[Figure]()
    traces: Mapping[str, Sequence[Span]] = {}
    is_whole = False
    try:
        began = time.monotonic()
        for done, ident in enumerate(wanted.figures):
            log.progress(_progress(done, len(wanted.figures), time.monotonic() - began))
            figures.append(await suite.measured(ident))
        if wanted.curves:
            await measure_curves(suite, wanted.curves, request.up_to, figures.append)
        if wanted.peers:
            await measure_peers(suite, figures.append)
        is_whole = True
        traces = await take_traces(suite, [figure.id for figure in figures] if request.html is not None else [])
    finally:
        if not is_whole:
            suite.note(f"stopped early, with {len(figures)} figures measured and more wanted")
        if figures:
            for note in suite.notes:
                complain(note)
            by_id = {figure.id: figure for figure in figures}
            _tell(Run(by_id, surroundings, pending(), suite.notes, traces), request)
    changes = compare(figures, before.figures)
    for change in changes:
        complain(str(change))
    if not request.gate:
        return 0
    if request.compare is None:
        failed = missed_targets(figures)
    else:
        failed = incomparable(figures, before.figures)
        worse = await _confirmed(suite, changes, before.figures, _allowed(surroundings, before.surroundings))
        failed += [f"{change.id}: worse than before" for change in worse]
    for said in failed:
        complain(f"gate: {said}")
    return MISSED if failed else 0


def _allowed(now: Mapping[str, object], then: Mapping[str, object]) -> float:
    allowed = tolerance(now, then)
    if allowed != TOLERANCE:
        complain(f"the earlier run is of another kind of machine: a figure may be worse by {allowed:.0%}")
    return allowed


def _progress(done: int, count: int, seconds: float) -> str:
    """Return which figure is the next one and, when some are done, how long the others will take at that rate."""
    said = f"figure {done + 1} of {count}"
    return said if done < _ENOUGH else f"{said}, some {math.ceil(seconds / done * (count - done) / 60)} min left"


async def _confirmed(suite: Suite, changes: list[Change], before: dict[str, Figure], allowed: float) -> list[Change]:
    """Measure what got worse once more, and return what still is: a neighbour's load passes, a change of ours stays."""
    confirmed = []
    for change in regressions(changes, allowed):
        if change.id not in FIGURES:
            confirmed.append(change)
            continue
        complain(f"{change.id} is worse than before; measuring it again")
        again = compare([await suite.measured_again(change.id)], before)
        for second in again:
            complain(str(second))
        confirmed += regressions(again, allowed)
    return confirmed


def _tell(measured: Run, request: BenchRequest) -> None:
    """Print what was measured, be it all or what an interrupt has left, and write the files that were asked for."""
    print_figures(measured, request.form)
    if request.html is not None:
        write_report_file("--html", request.html, html(measured))
    if request.svg is not None:
        write_report_file("--svg", request.svg, overview(list(measured.figures.values())))


def _surroundings(template: Template, load: float) -> dict[str, object]:
    """Return what was measured on; complain when something else ran there as the measuring began."""
    is_busy = load > _BUSY * (os.cpu_count() or 1)
    if is_busy:
        complain(f"the machine was busy when this began (load {load:.1f}): the figures say little")
    return environment(template.host, template.spec) | {"load_before": load, "is_busy": is_busy}
