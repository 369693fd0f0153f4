"""`sandbox exec`: one script, one fresh VM, streams passed through, the script's exit code as ours."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from sandbox.cli.copies import Copies, copies
from sandbox.cli.defaults import Chosen, chosen
from sandbox.cli.environment import variables
from sandbox.cli.escape import Left, with_escape
from sandbox.cli.exec_request import ExecRequest
from sandbox.cli.exit_code import INTERRUPTED, TOOL_FAILED
from sandbox.cli.interrupt import interrupting
from sandbox.cli.program import Command, Script, ScriptError, find_program
from sandbox.cli.run import complain, describe, report, run, say
from sandbox.cli.streams import is_interactive, pass_on, raw_terminal, standard_input, terminal_size
from sandbox.config import TemplateConfig
from sandbox.errors import ConfigError, GuestLost, SandboxError
from sandbox.guest.execution import Status
from sandbox.guest.request import CAPTURE_BYTES
from sandbox.guest.sandbox import RunOptions
from sandbox.image.recipe import known_recipes, load_recipe
from sandbox.result import Outcome, Result
from sandbox.template.template import Template
from sandbox.trace.stage import stage
from sandbox.vm import VM

Run = Callable[[], Coroutine[Any, Any, int]]
Around = Callable[[Run, TemplateConfig], Coroutine[Any, Any, int]]
_ID = "main"


@dataclass(frozen=True)
class _Job:
    """The same, checked and loaded."""

    program: Script | Command
    args: tuple[str, ...]
    env: dict[str, str]
    options: Chosen
    copies: Copies


def run_exec(request: ExecRequest, around: Around = lambda command, _: command()) -> int:
    """Run the request and return the exit code; `around` gets what runs it, and on which template."""
    try:
        job = _prepare(request)
    except ScriptError as error:
        return report(error, as_json=request.as_json, status=error.status)
    except SandboxError as error:
        return report(error, as_json=request.as_json)
    try:
        return run(around(lambda: _exec(request, job), job.options.template), as_json=request.as_json)
    except Left:
        complain("left the program; its VM is destroyed")
        return INTERRUPTED


def _prepare(request: ExecRequest) -> _Job:
    """Find every mistake before a VM is started."""
    if request.given.exclude is not None and request.program.project is None:
        raise ConfigError("--exclude says what --project leaves out, and there is no --project")
    options = chosen(request.given)
    wanted = copies(options, request.put, request.get, force=request.force, project=request.program.project)
    if request.as_json and any(transfer.is_printed for transfer in wanted.fetched):
        raise ConfigError("--json and --get to - would both write to our stdout; name a file to get to")
    program, arguments = find_program(request.program)
    return _Job(program, arguments, variables(request.env, request.env_file), options, wanted)


async def _exec(request: ExecRequest, job: _Job) -> int:
    template = await Template.ensure(job.options.template)
    async with template.lease() as vm:
        await job.copies.send(vm)
        try:
            with stage("execute"):
                result = await _run(vm, request, job)
        except GuestLost as lost:
            if request.as_json and lost.partial is not None:
                say({**lost.partial.to_dict(), "kind": "infra", "exit_code": TOOL_FAILED, "error": describe(lost)})
                return TOOL_FAILED
            raise
        failure = await job.copies.fetch(vm)
    status = result.shell_status
    if failure is not None and status == 0:
        status = TOOL_FAILED
    if request.as_json:
        envelope = result.to_dict() | {"exit_code": status}
        if (receipt := vm.receipt) is not None:
            envelope["receipt"] = receipt.to_dict()
        say(envelope if failure is None else envelope | {"error": describe(failure)})
        return status
    if result.outcome is not Outcome.EXITED and result.signal != signal.SIGINT:  # who pressed Ctrl-C knows
        complain(result.describe())
    if failure is not None:
        report(failure)
    return status


async def _run(vm: VM, request: ExecRequest, job: _Job) -> Result:
    def resize(rows: int, columns: int) -> None:
        if vm.status(_ID) is Status.RUNNING:
            vm.attach(_ID).resize(rows, columns)

    options = RunOptions(
        id=_ID,
        timeout=job.options.timeout,
        idle_timeout=job.options.idle_timeout,
        env=job.env,
        cwd=job.options.cwd,
        user=job.options.user,
        pty=terminal_size() if request.pty else None,
        stdin=_typed(request),
        on_output=None if request.as_json else pass_on,
        capture_bytes=CAPTURE_BYTES if request.as_json else 0,
    )
    program = job.program
    with raw_terminal(resize) if request.pty else nullcontext(), interrupting(vm, _ID):
        if isinstance(program, Command):
            return await vm.exec(program.argv, **options)
        try:
            return await vm.run(program.code, language=program.language, args=job.args, name=program.name, **options)
        except ConfigError as error:
            if program.language in vm.languages:
                raise
            raise ConfigError(f"{error}; {_advice(program)}") from None


def _advice(script: Script) -> str:
    """Return what to do about a language that the image lacks."""
    for name in known_recipes():
        if script.language in load_recipe(name).languages:
            return f"give --image {name}"
    return f"copy the script in and name its interpreter: --put {script.name} -- {script.language} {script.name}"


def _typed(request: ExecRequest) -> bytes | AsyncIterator[bytes]:
    """Return what the program reads. At a terminal that passes on every key, one way out is kept for the caller."""
    if request.pty and is_interactive():
        return with_escape(standard_input())
    is_taken = request.no_stdin or (request.program.words[:1] == ("-",) and request.program.code is None)
    return b"" if is_taken else standard_input()
