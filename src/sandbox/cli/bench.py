"""`sandbox bench`: measure, then print a table or one JSON document."""

from __future__ import annotations

import json
from typing import Literal

from rich.console import Console
from rich.table import Table

from sandbox.bench.environment import environment
from sandbox.bench.figure import Figure
from sandbox.bench.suite import FIGURES, run_suite
from sandbox.cli.run import report, run
from sandbox.errors import ConfigError
from sandbox.log import log

Form = Literal["table", "json", "markdown"]
_COLUMNS = ("id", "figure", "boundary", "n", "p50", "p95", "p99", "cv", "× raw")
_FACTS = ("machine", "cores", "accelerator", "qemu", "libvirt", "guest_memory_mib", "sandbox")


def run_bench(only: str | None, samples: int | None, *, form: Form) -> int:
    wanted = [ident.strip().upper() for ident in (only or ",".join(FIGURES)).split(",") if ident.strip()]
    unknown = [ident for ident in wanted if ident not in FIGURES]
    if unknown or not wanted:
        return report(ConfigError(f"no such figure: {', '.join(unknown)}; there are {', '.join(FIGURES)}"), status=2)
    return run(_bench(wanted, samples, form))


async def _bench(wanted: list[str], samples: int | None, form: Form) -> int:
    template, figures = await run_suite(wanted, samples, log.progress)
    surroundings = environment(template)
    facts = ", ".join(f"{name} {surroundings[name]}" for name in _FACTS)
    if form == "json":
        print(json.dumps({"environment": surroundings, "figures": [figure.as_dict() for figure in figures]}, indent=1))
    elif form == "markdown":
        print(facts + "\n")
        for row in (_COLUMNS, ("---",) * len(_COLUMNS), *map(_row, figures)):
            print(f"| {' | '.join(row)} |")
    else:
        console = Console(width=None if Console().is_terminal else 140)
        console.print(facts, highlight=False)
        table = Table(*_COLUMNS)
        for figure in figures:
            table.add_row(*_row(figure))
        console.print(table)
    return 0


def _row(figure: Figure) -> tuple[str, ...]:
    values = figure.as_dict()
    times = [_milliseconds(values[name]) for name in ("p50", "p95", "p99")]
    ratio = f"{figure.raw_ratio:.2f}" if figure.raw_ratio is not None else ""
    return (figure.id, figure.name, figure.boundary, str(len(figure.samples)), *times, f"{figure.cv:.0%}", ratio)


def _milliseconds(seconds: object) -> str:
    assert isinstance(seconds, float)
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
