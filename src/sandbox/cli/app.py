"""The command line's commands. Heavy imports wait until one of them runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from sandbox.cli.bench_command import bench
from sandbox.cli.exec_options import ExecCommand, takes_exec_options
from sandbox.cli.exec_request import ExecRequest
from sandbox.cli.given import Given
from sandbox.cli.host_commands import audit, ps, reap, top
from sandbox.cli.image_app import image_app
from sandbox.cli.options import (
    CpusOption,
    CwdOption,
    EnvFileOption,
    EnvOption,
    ForceOption,
    GetLimitOption,
    GetOption,
    IdleTimeoutOption,
    ImageOption,
    MemoryOption,
    ProfileOption,
    PutOption,
    TimeoutOption,
    TransferTimeoutOption,
    UserOption,
)
from sandbox.cli.template_app import template_app
from sandbox.cli.trace_app import trace_app

app = typer.Typer(
    name="sandbox",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run code nobody trusts in fresh virtual machines, cloned from a golden snapshot.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(no_args_is_help=True, help="Settings of the command line.")


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


@app.command("exec", cls=ExecCommand, context_settings={"allow_interspersed_args": False})
@takes_exec_options
def exec_command(
    _context: typer.Context,
    request: ExecRequest,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the program's output.")
    ] = False,
) -> None:
    """Run a script in a fresh virtual machine, or after -- a command of the guest.

    Output is passed on as it is written, standard input is passed in, and the exit code is the program's. Ctrl-C
    reaches the program; a second one ends it with its machine. Exit codes of our own: 124 time-out, 125 the sandbox
    failed, 126 the script cannot be read, 127 it does not exist, 128+n signal n.
    """
    from sandbox.cli.exec import run_exec

    raise typer.Exit(run_exec(replace(request, as_json=json_)))


@app.command()
def shell(
    env: EnvOption = None,
    env_file: EnvFileOption = None,
    cwd: CwdOption = None,
    user: UserOption = None,
    put: PutOption = None,
    get: GetOption = None,
    get_limit: GetLimitOption = None,
    transfer_timeout: TransferTimeoutOption = None,
    force: ForceOption = False,
    timeout: TimeoutOption = None,
    idle_timeout: IdleTimeoutOption = None,
    memory: MemoryOption = None,
    cpus: CpusOption = None,
    image: ImageOption = None,
    profile: ProfileOption = None,
) -> None:
    """Open an interactive shell in a fresh virtual machine.

    Every key goes to the guest, Ctrl-C and Ctrl-Z too; `exit` or Ctrl-D ends it, and the machine with it. Should it not
    answer any more, Enter ~ . leaves it. Without a terminal, commands are read from standard input. The exit code is
    the shell's.
    """
    from sandbox.cli.shell import ShellRequest, run_shell

    given = Given(
        image=image,
        memory=memory,
        cpus=cpus,
        profile=profile,
        timeout=timeout,
        idle_timeout=idle_timeout,
        user=user,
        cwd=cwd,
        get_limit=get_limit,
        transfer_timeout=transfer_timeout,
    )
    request = ShellRequest(given, env or [], env_file or [], put or [], get or [], force)
    raise typer.Exit(run_shell(request))


@app.command()
def setup(
    image: Annotated[str, typer.Option(help="Recipe name, or digest of a built image.")] = "default",
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


@config_app.command("show")
def config_show(
    profile: ProfileOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document, origins included.")] = False,
) -> None:
    """Print every setting that counts in this directory.

    They come from /etc/sandbox/sandbox.toml, then ~/.config/sandbox/sandbox.toml, then the project's sandbox.toml or
    [tool.sandbox] of its pyproject.toml; a later one counts, then the profile, then the command line.
    """
    from sandbox.cli.config_command import run_config_show

    raise typer.Exit(run_config_show(profile, with_origin=origin, as_json=json_))


for command in (ps, top, audit, reap, bench):
    app.command()(command)
app.add_typer(config_app, name="config")
app.add_typer(image_app, name="image")
app.add_typer(template_app, name="template")
app.add_typer(trace_app, name="trace")
