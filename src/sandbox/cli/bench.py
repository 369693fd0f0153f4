"""`sandbox bench`: measure, then print a table or one JSON document; compare, judge, draw."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from sandbox.bench.compare import compare, load_samples
from sandbox.bench.environment import environment
from sandbox.bench.figure import Figure, percentile
from sandbox.bench.report import html, show
from sandbox.bench.suite import FIGURES, LONG, Suite, pending
from sandbox.bench.targets import judge
from sandbox.cli.run import complain, report, run
from sandbox.config import HostConfig, TemplateConfig
from sandbox.errors import ConfigError, SandboxError
from sandbox.log import log
from sandbox.template.template import Template

Form = Literal["table", "json", "markdown"]
MISSED = 1
_TOLERANCE = 0.1
_BUSY = 0.5
_COLUMNS = ("id", "figure", "boundary", "n", "p50", "p95", "p99", "cv", "× raw", "target")
_FACTS = ("machine", "cores", "accelerator", "qemu", "libvirt", "guest_memory_mib", "sandbox")


@dataclass(frozen=True)
class BenchRequest:
    """What the command line asked for."""

    only: str | None
    samples: int | None
    form: Form
    html: Path | None
    compare: Path | None
    gate: bool


def run_bench(request: BenchRequest) -> int:
    """Measure and print; return 1 if `gate` is set and a target is missed, or a figure is worse than before."""
    try:
        wanted = _wanted(request.only)
        before = load_samples(request.compare) if request.compare is not None else {}
    except SandboxError as error:
        return report(error, status=2)
    return run(_bench(wanted, before, request))


def _wanted(only: str | None) -> list[str]:
    lacking = pending()
    there = [ident for ident in FIGURES if ident not in lacking]
    if only is None:
        return [ident for ident in there if ident not in LONG]
    asked = [ident.strip().upper() for ident in only.split(",") if ident.strip()]
    unknown = [name for name in asked if not any(_is_meant(name, ident) for ident in there)]
    if waiting := [f"{name} ({lacking[name]})" for name in unknown if name in lacking]:
        raise ConfigError(f"pending: {', '.join(waiting)}")
    if unknown or not asked:
        raise ConfigError(f"no such figure: {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    return [ident for name in asked for ident in there if _is_meant(name, ident)]


def _is_meant(name: str, ident: str) -> bool:
    """Whether `name` is this figure, or its group: A stands for A1 to A4, E6 for E6UP and E6DOWN."""
    if name.isalpha() and len(name) == 1:
        return ident.startswith(name) and ident not in LONG
    return ident == name or (ident.startswith(name) and ident[len(name) :].isalpha() and name[-1].isdigit())


async def _bench(wanted: list[str], before: dict[str, list[float]], request: BenchRequest) -> int:
    load = os.getloadavg()[0]
    template = await Template.ensure(TemplateConfig(), HostConfig())
    suite, figures = Suite(template, request.samples, log.progress), list[Figure]()
    try:
        for ident in wanted:
            figures.append(await suite.measured(ident))
    finally:
        if figures:
            _tell(figures, wanted, environment(template) | {"load_before": load}, request)
    changes = compare(figures, before)
    for change in changes:
        complain(str(change))
    if not request.gate:
        return 0
    failed = [f"{figure.id}: {why}" for figure in figures if (why := judge(figure)[1]) and not before]
    failed += [f"{change.id}: worse than before" for change in changes if change.is_worse(_TOLERANCE)]
    for said in failed:
        complain(f"gate: {said}")
    return MISSED if failed else 0


def _tell(figures: list[Figure], wanted: list[str], facts: dict[str, object], request: BenchRequest) -> None:
    """Print what was measured, be it all or what an interrupt has left."""
    load = float(str(facts["load_before"]))
    surroundings = facts | {"is_busy": load > _BUSY * (os.cpu_count() or 1)}
    if surroundings["is_busy"]:
        complain(f"the machine was busy when this began (load {load:.1f}): the figures say little")
    if len(figures) < len(wanted):
        complain(f"stopped early: {len(figures)} of {len(wanted)} figures were measured")
    _print(figures, surroundings, request.form)
    if request.html is not None:
        request.html.write_text(html(figures, surroundings, pending()))


def _print(figures: list[Figure], surroundings: dict[str, object], form: Form) -> None:
    facts = ", ".join(f"{name} {surroundings[name]}" for name in _FACTS)
    if form == "json":
        measured = [figure.as_dict() | _verdict(figure) for figure in figures]
        print(json.dumps({"environment": surroundings, "figures": measured, "pending": pending()}, indent=1))
    elif form == "markdown":
        print(facts + "\n")
        for row in (_COLUMNS, ("---",) * len(_COLUMNS), *map(_row, figures)):
            print(f"| {' | '.join(row)} |")
    else:
        console = Console(width=None if Console().is_terminal else 150)
        console.print(facts, highlight=False)
        table = Table(*_COLUMNS)
        for figure in figures:
            table.add_row(*_row(figure))
        console.print(table)
        console.print(f"pending: {', '.join(pending())}", highlight=False)


def _verdict(figure: Figure) -> dict[str, Any]:
    verdict, why = judge(figure)
    return {"verdict": verdict, "missed_by": why}


def _row(figure: Figure) -> tuple[str, ...]:
    times = [show(figure, percentile(figure.samples, part)) for part in (50, 95, 99)]
    ratio = ""
    if figure.raw_ratio is not None and (interval := figure.raw_interval) is not None:
        ratio = f"{figure.raw_ratio:.2f} ({interval[0]:.2f}–{interval[1]:.2f})"
    verdict, why = judge(figure)
    said = f"{verdict}: {why}" if why else verdict.replace("no target", "")
    return (
        *(figure.id, figure.name, figure.boundary, str(len(figure.samples)), *times),
        *(f"{figure.cv:.0%}", ratio, said),
    )
