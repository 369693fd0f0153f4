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
    asked = [ident.strip().upper() for ident in (only or ",".join(FIGURES)).split(",") if ident.strip()]
    wanted = [ident for name in asked for ident in FIGURES if _is_meant(name, ident)]
    unknown = [name for name in asked if not any(_is_meant(name, ident) for ident in FIGURES)]
    if unknown or not wanted:
        return report(ConfigError(f"no such figure: {', '.join(unknown)}; there are {', '.join(FIGURES)}"), status=2)
    return run(_bench(wanted, samples, form))


def _is_meant(name: str, ident: str) -> bool:
    """Whether `name` is this figure, or the group that it belongs to: E6 stands for E6UP and E6DOWN."""
    return ident == name or (ident.startswith(name) and ident[len(name) :].isalpha() and name[-1].isdigit())


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
    show = _bytes if figure.unit == "bytes" else _milliseconds
    times = [show(values[name]) for name in ("p50", "p95", "p99")]
    ratio = f"{figure.raw_ratio:.2f}" if figure.raw_ratio is not None else ""
    return (figure.id, figure.name, figure.boundary, str(len(figure.samples)), *times, f"{figure.cv:.0%}", ratio)


def _bytes(size: object) -> str:
    assert isinstance(size, float)
    return f"{size / 1024:.0f} KiB"


def _milliseconds(seconds: object) -> str:
    assert isinstance(seconds, float)
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
