"""The commands of `sandbox trace`: what can be written after it. Heavy imports wait until one of them runs."""

from __future__ import annotations

import typer

from sandbox.cli.options import (
    ArgsArgument,
    CodeOption,
    CwdOption,
    EnvFileOption,
    EnvOption,
    ForceOption,
    GetLimitOption,
    GetOption,
    IdleTimeoutOption,
    ImageOption,
    LanguageOption,
    MemoryOption,
    PtyOption,
    PutOption,
    ScriptArgument,
    ShortestOption,
    TimeoutOption,
    TraceHtmlOption,
    TraceJsonOption,
    TransferTimeoutOption,
    UserOption,
    WarmUpOption,
)

trace_app = typer.Typer(no_args_is_help=True, help="Show where the time of a boot, a restore or an execution goes.")


@trace_app.command("exec", context_settings={"allow_interspersed_args": False})
def trace_exec(
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
    get_limit: GetLimitOption = "1G",
    transfer_timeout: TransferTimeoutOption = 600.0,
    force: ForceOption = False,
    pty: PtyOption = False,
    memory: MemoryOption = "256",
    image: ImageOption = "default",
    json_: TraceJsonOption = None,
    html: TraceHtmlOption = None,
    warm_up: WarmUpOption = 0,
    shortest: ShortestOption = 0.5,
) -> None:
    """Run a script as `sandbox exec` does, and show where the time went.

    The picture goes to standard error, after the script's own output; the exit code is the script's.
    """
    from sandbox.cli.exec import exec_request
    from sandbox.cli.trace import TraceRequest, run_trace_exec

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
        get_limit=get_limit,
        transfer_timeout=transfer_timeout,
        force=force,
        as_json=False,
    )
    raise typer.Exit(run_trace_exec(request, TraceRequest(json_, html, shortest, warm_up)))


@trace_app.command("restore")
def trace_restore(
    memory: MemoryOption = "256",
    image: ImageOption = "default",
    json_: TraceJsonOption = None,
    html: TraceHtmlOption = None,
    warm_up: WarmUpOption = 0,
    shortest: ShortestOption = 0.5,
) -> None:
    """Restore one virtual machine, destroy it, and show where the time went."""
    from sandbox.cli.trace import TraceRequest, run_trace_restore

    raise typer.Exit(run_trace_restore(image, memory, TraceRequest(json_, html, shortest, warm_up)))


@trace_app.command("boot")
def trace_boot(
    memory: MemoryOption = "256",
    image: ImageOption = "default",
    json_: TraceJsonOption = None,
    html: TraceHtmlOption = None,
    shortest: ShortestOption = 10.0,
) -> None:
    """Boot one virtual machine without a template, destroy it, and show where the time went."""
    from sandbox.cli.trace import TraceRequest, run_trace_boot

    raise typer.Exit(run_trace_boot(image, memory, TraceRequest(json_, html, shortest)))
