"""The commands of `sandbox trace`: what can be written after it. Heavy imports wait until one of them runs."""

from __future__ import annotations

import typer

from sandbox.cli.exec_options import ExecCommand, takes_exec_options
from sandbox.cli.exec_request import ExecRequest
from sandbox.cli.given import Given
from sandbox.cli.options import (
    ImageOption,
    MemoryOption,
    ShortestOption,
    TraceHtmlOption,
    TraceJsonOption,
    WarmUpOption,
)

trace_app = typer.Typer(no_args_is_help=True, help="Show where the time of a boot, a restore or an execution goes.")


@trace_app.command("exec", cls=ExecCommand, context_settings={"allow_interspersed_args": False})
@takes_exec_options
def trace_exec(
    _context: typer.Context,
    request: ExecRequest,
    json_: TraceJsonOption = None,
    html: TraceHtmlOption = None,
    warm_up: WarmUpOption = 0,
    shortest: ShortestOption = 0.5,
) -> None:
    """Run a script or a command as `sandbox exec` does, and show where the time went.

    The picture goes to standard error, after the program's own output; the exit code is the program's.
    """
    from sandbox.cli.trace import TraceRequest, run_trace_exec

    raise typer.Exit(run_trace_exec(request, TraceRequest(json_, html, shortest, warm_up)))


@trace_app.command("restore")
def trace_restore(
    memory: MemoryOption = None,
    image: ImageOption = None,
    json_: TraceJsonOption = None,
    html: TraceHtmlOption = None,
    warm_up: WarmUpOption = 0,
    shortest: ShortestOption = 0.5,
) -> None:
    """Restore one virtual machine, destroy it, and show where the time went."""
    from sandbox.cli.trace import TraceRequest, run_trace_restore

    raise typer.Exit(run_trace_restore(Given(image, memory, None, None), TraceRequest(json_, html, shortest, warm_up)))


@trace_app.command("boot")
def trace_boot(
    memory: MemoryOption = None,
    image: ImageOption = None,
    json_: TraceJsonOption = None,
    html: TraceHtmlOption = None,
    shortest: ShortestOption = 10.0,
) -> None:
    """Boot one virtual machine without a template, destroy it, and show where the time went."""
    from sandbox.cli.trace import TraceRequest, run_trace_boot

    raise typer.Exit(run_trace_boot(Given(image, memory, None, None), TraceRequest(json_, html, shortest)))
