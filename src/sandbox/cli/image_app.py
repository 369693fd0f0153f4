"""The commands of `sandbox image`: what can be written after it. Heavy imports wait until one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

image_app = typer.Typer(no_args_is_help=True, help="Build and look after guest images.")


@image_app.command("build")
def image_build(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or path of a .toml file.")] = "default",
    package: Annotated[list[str] | None, typer.Option(help="A further Debian package; may be repeated.")] = None,
    pip: Annotated[Path | None, typer.Option(help="A requirements file; its wheels go into the image.")] = None,
    kernel: Annotated[
        Literal["debian", "minimal"] | None,
        typer.Option(help="`minimal` is compiled from Debian's source: it boots faster, and can less."),
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Take all packages anew from the mirror.")] = False,
) -> None:
    """Build an image and print its digest. What did not change is taken from earlier builds."""
    from sandbox.cli.image import build

    raise typer.Exit(build(recipe, package or [], pip, kernel, fresh=fresh))


@image_app.command("ls")
def image_ls(json_: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List built images."""
    from sandbox.cli.image import ls

    raise typer.Exit(ls(as_json=json_))


@image_app.command("inspect")
def image_inspect(image: Annotated[str, typer.Argument()] = "default") -> None:
    """Print an image's manifest: packages, versions, digests."""
    from sandbox.cli.image import inspect

    raise typer.Exit(inspect(image))


@image_app.command("verify")
def image_verify(image: Annotated[str, typer.Argument()] = "default") -> None:
    """Read every file of an image and compare it with the manifest."""
    from sandbox.cli.image import verify

    raise typer.Exit(verify(image))


@image_app.command("prune")
def image_prune() -> None:
    """Remove images that no name points to, and templates made from them."""
    from sandbox.cli.image import prune

    raise typer.Exit(prune())
