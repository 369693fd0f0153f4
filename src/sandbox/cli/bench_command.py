"""`sandbox bench` and its options. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def bench(
    only: Annotated[
        str | None, typer.Option(help="Figures or groups to measure, for example S3,A.", metavar="ID,…")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", help="Samples for each figure.", min=2)] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a report with pictures, too.", metavar="FILE")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write one picture of all times, too.", metavar="FILE")] = None,
    recorded: Annotated[
        Path | None, typer.Option(help="Show this run (a --json document) and measure nothing.", metavar="RUN.json")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Say what got worse since this run (a --json document).", metavar="OLD.json")
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit with 1 if a target is missed; with --compare, if one is worse.")
    ] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Draw A1, S3, E3 and M1 (or --only) against 1, 2, 5, … idle VMs instead.")
    ] = False,
    up_to: Annotated[int, typer.Option(help="With --scaling: so many idle VMs at last.", metavar="N", min=1)] = 400,
    peers: Annotated[
        bool, typer.Option("--peers", help="Run a line of Python in every way that this host has, in turn.")
    ] = False,
) -> None:
    """Measure the figures on this host, with real virtual machines."""
    from sandbox.cli.bench import BenchRequest, run_bench

    form: Literal["table", "json", "markdown"] = "json" if json_ else "markdown" if markdown else "table"
    raise typer.Exit(run_bench(BenchRequest(only, n, form, html, compare, gate, scaling, up_to, peers, svg, recorded)))
