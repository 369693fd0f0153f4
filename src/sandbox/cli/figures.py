"""Print what a benchmark has measured: a table, Markdown, or one JSON document."""

from __future__ import annotations

import json
from typing import Literal

from rich.console import Console
from rich.table import Table

from sandbox.bench.figure import Figure, percentile
from sandbox.bench.run import Run
from sandbox.bench.targets import judge

Form = Literal["table", "json", "markdown"]
_COLUMNS = ("id", "figure", "boundary", "n", "p50", "p95", "p99", "cv", "× raw", "target")
_FACTS = ("machine", "cores", "accelerator", "qemu", "libvirt", "guest_memory_mib", "sandbox")


def print_figures(measured: Run, form: Form) -> None:
    """Print them in the form that was asked for; ways to run code get a column of what they isolate."""
    if form == "json":
        print(json.dumps(measured.as_dict(), indent=1))
        return
    figures = list(measured.figures.values())
    facts = ", ".join(f"{name} {measured.surroundings[name]}" for name in _FACTS)
    isolation = any(figure.isolates for figure in figures)
    columns = (*_COLUMNS, *(["isolates"] if isolation else []))
    rows = [(*_row(figure), *([figure.isolates] if isolation else [])) for figure in figures]
    if form == "markdown":
        print(facts + "\n")
        for row in (columns, ("---",) * len(columns), *rows):
            print(f"| {' | '.join(row)} |")
    else:
        console = Console(width=None if Console().is_terminal else 150)
        console.print(facts, highlight=False)
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(f"pending: {', '.join(measured.pending)}", highlight=False)


def _row(figure: Figure) -> tuple[str, ...]:
    times = [figure.show(percentile(figure.samples, part)) for part in (50, 95, 99)]
    ratio = ""
    if figure.raw_ratio is not None and (interval := figure.raw_interval) is not None:
        ratio = f"{figure.raw_ratio:.2f} ({interval[0]:.2f}–{interval[1]:.2f})"
    verdict, why = judge(figure)
    said = f"{verdict}: {why}" if why else verdict.replace("no target", "")
    return (
        *(figure.id, figure.name, figure.boundary, str(len(figure.samples)), *times),
        *(f"{figure.cv:.0%}", ratio, said),
    )
