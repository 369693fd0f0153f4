"""Commands that show what is on this host, and clear it up. Heavy imports wait until one of them runs."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def ps(json_: JsonOption = False) -> None:
    """List the virtual machines on this host with their owners."""
    from sandbox.cli.inventory import run_ps

    raise typer.Exit(run_ps(as_json=json_))


def top(
    once: Annotated[bool, typer.Option("--once", help="Show it one time and end, as without a terminal.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
) -> None:
    """Show pools and virtual machines of this host, live; `q` or Ctrl-C ends it."""
    from sandbox.cli.top import run_top

    raise typer.Exit(run_top(once=once, as_json=json_, interval=interval))


def audit(json_: JsonOption = False) -> None:
    """List every process, directory and socket with its owner. Exit 1 if something belongs to nobody."""
    from sandbox.cli.inventory import run_audit

    raise typer.Exit(run_audit(as_json=json_))


def reap() -> None:
    """End and remove what dead processes left behind; every start of the library does the same."""
    from sandbox.cli.inventory import run_reap

    raise typer.Exit(run_reap())
