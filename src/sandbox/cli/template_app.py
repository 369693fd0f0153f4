"""The commands of `sandbox template`: what can be written after it. Heavy imports wait until one of them runs."""

from __future__ import annotations

from typing import Annotated

import typer

template_app = typer.Typer(no_args_is_help=True, help="Look after golden snapshots and their generations.")
TemplateArgument = Annotated[str, typer.Argument(help="A series, or the beginning of a template's name.")]


@template_app.command("ls")
def template_ls(json_: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List golden snapshots, by series and generation."""
    from sandbox.cli.template import ls

    raise typer.Exit(ls(as_json=json_))


@template_app.command("inspect")
def template_inspect(template: TemplateArgument = "default-256m-1c") -> None:
    """Print a template's manifest, with what the inspection of its guest found."""
    from sandbox.cli.template import inspect

    raise typer.Exit(inspect(template))


@template_app.command("verify")
def template_verify(template: TemplateArgument = "default-256m-1c") -> None:
    """Read every byte of a template and compare it with the manifest."""
    from sandbox.cli.template import verify

    raise typer.Exit(verify(template))


@template_app.command("prune")
def template_prune() -> None:
    """Remove old generations, and templates of images that are gone; what is in use stays."""
    from sandbox.cli.template import prune

    raise typer.Exit(prune())


@template_app.command("rollback")
def template_rollback(
    template: TemplateArgument = "default-256m-1c",
    undo: Annotated[bool, typer.Option("--undo", help="Let the newest generation be used again.")] = False,
) -> None:
    """Use the generation before the one in use (or the named one) from now on, in running pools too."""
    from sandbox.cli.template import rollback

    raise typer.Exit(rollback(template, undo=undo))
