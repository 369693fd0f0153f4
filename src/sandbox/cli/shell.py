"""`sandbox shell`: an interactive shell in a fresh VM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sandbox.cli.copies import Copies, copies
from sandbox.cli.defaults import Chosen, chosen
from sandbox.cli.environment import variables
from sandbox.cli.escape import Left, with_escape
from sandbox.cli.exit_code import INTERRUPTED, TOOL_FAILED
from sandbox.cli.given import Given
from sandbox.cli.run import complain, report, run
from sandbox.cli.streams import is_interactive, pass_on, raw_terminal, standard_input, terminal_size
from sandbox.errors import SandboxError
from sandbox.guest.execution import Status
from sandbox.result import Outcome
from sandbox.template.template import Template

_ID = "shell"


@dataclass(frozen=True)
class ShellRequest:
    """What the command line asked for, as it was typed."""

    given: Given
    env: list[str]
    env_file: list[Path]
    put: list[str]
    get: list[str]
    force: bool


def run_shell(request: ShellRequest) -> int:
    """Run the shell and return its exit code."""
    try:
        options = chosen(request.given)
        wanted = copies(options, request.put, request.get, force=request.force)
        env = variables(request.env, request.env_file)
    except SandboxError as error:
        return report(error)
    try:
        return run(_shell(options, env, wanted))
    except Left:
        complain("left the shell; its VM is destroyed")
        return INTERRUPTED


async def _shell(options: Chosen, env: dict[str, str], wanted: Copies) -> int:
    """At a terminal the guest has one, too; else commands are read from standard input to its end."""
    interactive = is_interactive()
    template = await Template.ensure(options.template)
    async with template.lease() as vm:
        await wanted.send(vm)

        def resize(rows: int, columns: int) -> None:
            if vm.status(_ID) is Status.RUNNING:
                vm.attach(_ID).resize(rows, columns)

        with raw_terminal(resize):
            result = await vm.exec(
                ["bash", "--login", *(() if interactive else ("-s",))],
                id=_ID,
                timeout=options.timeout,
                idle_timeout=options.idle_timeout,
                pty=terminal_size() if interactive else None,
                stdin=with_escape(standard_input()) if interactive else standard_input(),
                on_output=pass_on,
                capture_bytes=0,
                env=env,
                cwd=options.cwd,
                user=options.user,
            )
        failure = await wanted.fetch(vm)
    if result.outcome is not Outcome.EXITED:
        complain(result.describe())
    if failure is not None:
        return report(failure, status=result.shell_status or TOOL_FAILED)
    return result.shell_status
