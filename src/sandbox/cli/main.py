"""The command line: parse, call the library, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sandbox.cli.options import (
    ArgsArgument,
    CodeOption,
    CwdOption,
    EnvFileOption,
    EnvOption,
    GetOption,
    IdleTimeoutOption,
    ImageOption,
    LanguageOption,
    MemoryOption,
    PtyOption,
    PutOption,
    ScriptArgument,
    TimeoutOption,
    UserOption,
)
from sandbox.cli.trace_app import trace_app

# pydantic would look through every installed package for plugins of its own, with each command.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
TOOL_FAILED, CANNOT_INVOKE, NOT_FOUND, INTERRUPTED = 125, 126, 127, 130

app = typer.Typer(
    name="sandbox",
    help="Run code nobody trusts in fresh virtual machines, cloned from a golden snapshot.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
image_app = typer.Typer(no_args_is_help=True, help="Build and look after guest images.")
app.add_typer(image_app, name="image")
template_app = typer.Typer(no_args_is_help=True, help="Look after golden snapshots and their generations.")
app.add_typer(template_app, name="template")
app.add_typer(trace_app, name="trace")
TemplateArgument = Annotated[str, typer.Argument(help="A series, or the beginning of a template's name.")]


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"sandbox {version('sandbox-vmpool')}")
        raise typer.Exit


@app.callback()
def _common(
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Log events; twice for more.")] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Do not report set-up and warnings.")] = False,
    _version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    from sandbox.cli.logs import configure

    configure(verbose=verbose, quiet=quiet)


@app.command("exec", context_settings={"allow_interspersed_args": False})
def exec_command(
    script: ScriptArgument = None,
    args: ArgsArgument = None,
    code: CodeOption = None,
    language: LanguageOption = None,
    timeout: TimeoutOption = None,
    idle_timeout: IdleTimeoutOption = None,
    env: EnvOption = None,
    env_file: EnvFileOption = None,
    cwd: CwdOption = None,
    user: UserOption = None,
    put: PutOption = None,
    get: GetOption = None,
    pty: PtyOption = False,
    memory: MemoryOption = "256",
    image: ImageOption = "default",
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the program's output.")
    ] = False,
) -> None:
    """Run a script in a fresh virtual machine.

    Output is passed on as it is written, standard input is passed in, and the exit code is the script's. Of our own:
    124 time-out, 125 the sandbox failed, 126 the script cannot be read, 127 it does not exist, 128+n signal n.
    """
    from sandbox.cli.exec import exec_request, run_exec

    request = exec_request(
        script,
        code,
        args,
        timeout=timeout,
        idle_timeout=idle_timeout,
        env=env or [],
        env_file=env_file or [],
        memory=memory,
        image=image,
        language=language,
        cwd=cwd,
        user=user,
        pty=pty,
        put=put or [],
        get=get or [],
        as_json=json_,
    )
    raise typer.Exit(run_exec(request))


@app.command()
def shell(
    env: EnvOption = None,
    env_file: EnvFileOption = None,
    cwd: CwdOption = None,
    user: UserOption = None,
    memory: MemoryOption = "256",
    image: ImageOption = "default",
) -> None:
    """Open an interactive shell in a fresh virtual machine.

    Every key goes to the guest, Ctrl-C and Ctrl-Z too; `exit` or Ctrl-D ends it, and the machine with it. Should it not
    answer any more, Enter ~ . leaves it. Without a terminal, commands are read from standard input. The exit code is
    the shell's.
    """
    from sandbox.cli.shell import ShellRequest, run_shell

    raise typer.Exit(run_shell(ShellRequest(image, memory, user, cwd, env or [], env_file or [])))


@app.command()
def setup(
    image: ImageOption = "default",
    check: Annotated[bool, typer.Option(help="Only say whether something is missing.")] = False,
) -> None:
    """Install what is missing: system packages (as root), the guest image and the template."""
    from sandbox.cli.setup import run_setup

    raise typer.Exit(run_setup(image, check_only=check))


@app.command()
def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    clones: Annotated[
        bool, typer.Option("--clones", help="Also restore two clones and prove that they differ.")
    ] = False,
) -> None:
    """Say what works, what does not, and the line that mends it. Exit 1 if something is broken."""
    from sandbox.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(as_json=json_, clones=clones))


@app.command()
def ps(json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List the virtual machines on this host with their owners."""
    from sandbox.cli.inventory import run_ps

    raise typer.Exit(run_ps(as_json=json_))


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Show it one time and end, as without a terminal.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
) -> None:
    """Show pools and virtual machines of this host, live; `q` or Ctrl-C ends it."""
    from sandbox.cli.top import run_top

    raise typer.Exit(run_top(once=once, as_json=json_, interval=interval))


@app.command()
def audit(json_: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List every process, directory and socket with its owner. Exit 1 if something belongs to nobody."""
    from sandbox.cli.inventory import run_audit

    raise typer.Exit(run_audit(as_json=json_))


@app.command()
def reap() -> None:
    """End and remove what dead processes left behind; every start of the library does the same."""
    from sandbox.cli.inventory import run_reap

    raise typer.Exit(run_reap())


@app.command()
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


def _hold_standard_streams() -> None:
    """Let a standard stream that we were started without lead nowhere.

    Otherwise the next file or socket to be opened gets its number, and the guest's output would be written there.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - print(file=None) would take stdout


def _is_written() -> bool:
    """Return whether all that was printed has got out; say so if it has not, unless its reader has gone."""
    try:
        sys.stdout.flush()
    except OSError as error:
        from sandbox.cli.run import complain, discard_output

        if not isinstance(error, BrokenPipeError):
            complain(f"our stdout cannot be written: {error.strerror}")
        discard_output()
        return False
    return True


def main() -> None:
    """Entry point: no failure of ours ends in a traceback or in an exit code that a script could have given."""
    _hold_standard_streams()
    try:
        app()
    except SystemExit as end:
        sys.exit(end.code if _is_written() or end.code else TOOL_FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - a defect of ours: one line for the user, the trace for who asks for it
        import logging
        import traceback

        from sandbox.cli.run import complain

        is_written = _is_written()
        if isinstance(error, OSError) and not is_written:
            sys.exit(TOOL_FAILED)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            complain(f"{error.strerror}: our output, or a file of ours, cannot be written; make room and try again")
        else:
            complain(f"internal error: {type(error).__name__}: {error}; -vv shows where")
        if logging.getLogger("sandbox").isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        sys.exit(TOOL_FAILED)
