"""`sandbox shell`: an interactive shell in a fresh VM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sandbox.cli.copies import Copies, copies
from sandbox.cli.environment import variables
from sandbox.cli.escape import Left, with_escape
from sandbox.cli.exec import memory_mib
from sandbox.cli.exit_code import INTERRUPTED, TOOL_FAILED
from sandbox.cli.run import complain, report, run
from sandbox.cli.streams import is_interactive, pass_on, raw_terminal, standard_input, terminal_size
from sandbox.config import TemplateConfig
from sandbox.errors import ConfigError, SandboxError
from sandbox.guest.execution import Status
from sandbox.result import Outcome
from sandbox.template.template import Template

_ID = "shell"


@dataclass(frozen=True)
class ShellRequest:
    """What the command line asked for, as it was typed."""

    image: str
    memory: str
    cpus: int
    user: str | None
    cwd: str | None
    env: list[str]
    env_file: list[Path]
    put: list[str]
    get: list[str]
    get_limit: str
    transfer_timeout: float
    force: bool
    timeout: float | None


def run_shell(request: ShellRequest) -> int:
    """Run the shell and return its exit code."""
    try:
        if request.timeout is not None and not request.timeout > 0:
            raise ConfigError(f"--timeout {request.timeout:g} leaves no time; give a positive number of seconds")
        env = variables(request.env, request.env_file)
        config = TemplateConfig(image=request.image, memory_mib=memory_mib(request.memory), vcpus=request.cpus)
        wanted = copies(
            request.put,
            request.get,
            get_limit=request.get_limit,
            transfer_timeout=request.transfer_timeout,
            force=request.force,
            memory_mib=config.memory_mib,
            cwd=request.cwd,
            user=request.user,
        )
    except SandboxError as error:
        return report(error)
    try:
        return run(_shell(request, env, config, wanted))
    except Left:
        complain("left the shell; its VM is destroyed")
        return INTERRUPTED


async def _shell(request: ShellRequest, env: dict[str, str], config: TemplateConfig, wanted: Copies) -> int:
    """At a terminal the guest has one, too; else commands are read from standard input to its end."""
    interactive = is_interactive()
    template = await Template.ensure(config)
    async with template.lease() as vm:
        await wanted.send(vm)

        def resize(rows: int, columns: int) -> None:
            if vm.status(_ID) is Status.RUNNING:
                vm.attach(_ID).resize(rows, columns)

        with raw_terminal(resize):
            result = await vm.exec(
                ["bash", "--login", *(() if interactive else ("-s",))],
                id=_ID,
                timeout=request.timeout,
                pty=terminal_size() if interactive else None,
                stdin=with_escape(standard_input()) if interactive else standard_input(),
                on_output=pass_on,
                capture_bytes=0,
                env=env,
                cwd=request.cwd,
                user=request.user,
            )
        failure = await wanted.fetch(vm)
    if result.outcome is not Outcome.EXITED:
        complain(result.describe())
    if failure is not None:
        return report(failure, status=result.shell_status or TOOL_FAILED)
    return result.shell_status
