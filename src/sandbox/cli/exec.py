"""`sandbox exec`: one script, one fresh VM, streams passed through, the script's exit code as ours."""

from __future__ import annotations

import base64
import errno
import os
import re
import select
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sandbox.cli.environment import variables
from sandbox.cli.escape import Left, with_escape
from sandbox.cli.exit_code import CANNOT_INVOKE, INTERRUPTED, NOT_FOUND, TOOL_FAILED
from sandbox.cli.run import complain, describe, report, run, say
from sandbox.cli.streams import is_interactive, pass_on, raw_terminal, standard_input, terminal_size
from sandbox.cli.transfer import Bounds, Transfer, get, parse_get, parse_put, put, size_bytes
from sandbox.config import TemplateConfig
from sandbox.errors import ConfigError, GuestFileError, GuestLost, SandboxError
from sandbox.guest.execution import Status
from sandbox.guest.request import CAPTURE_BYTES
from sandbox.result import Outcome, Result
from sandbox.template.template import Template
from sandbox.trace.stage import stage
from sandbox.vm import VM

LANGUAGES = {".py": "python", ".sh": "bash", ".js": "node"}
Command = Callable[[], Coroutine[Any, Any, int]]
Around = Callable[[Command, TemplateConfig], Coroutine[Any, Any, int]]
_ID = "main"
_READ_BYTES = 64 * 1024
_MEMORY = re.compile(r"^(\d+)\s*([mMgG]?)(?:i?[bB])?$")
_KINDS = {Outcome.EXITED: "exit", Outcome.TIMED_OUT: "timeout"}


@dataclass(frozen=True)
class ExecRequest:
    """What the command line asked for, as it was typed."""

    script: str | None
    code: str | None
    args: list[str]
    timeout: float | None
    idle_timeout: float | None
    env: list[str]
    env_file: list[Path]
    memory: str
    image: str
    language: str | None
    cwd: str | None
    user: str | None
    pty: bool
    put: list[str]
    get: list[str]
    get_limit: str
    transfer_timeout: float
    force: bool
    as_json: bool


def exec_request(script: str | None, code: str | None, args: list[str] | None, **options: Any) -> ExecRequest:
    """Return the request for these arguments: with `-c` every positional one is the program's."""
    arguments = list(args or [])
    if code is not None and script is not None:
        arguments, script = [script, *arguments], None
    return ExecRequest(script=script, code=code, args=arguments, **options)


@dataclass(frozen=True)
class _Job:
    """The same, checked and loaded."""

    code: str
    name: str
    language: str
    env: dict[str, str]
    config: TemplateConfig
    put: list[Transfer]
    get: list[Transfer]
    bounds: Bounds


def run_exec(request: ExecRequest, around: Around = lambda command, _: command()) -> int:
    """Run the request and return the exit code; `around` gets what runs it, and on which template."""
    try:
        job = _prepare(request)
    except ScriptError as error:
        return report(error, as_json=request.as_json, status=error.status)
    except SandboxError as error:
        return report(error, as_json=request.as_json)
    try:
        return run(around(lambda: _exec(request, job), job.config), as_json=request.as_json)
    except Left:
        complain("left the program; its VM is destroyed")
        return INTERRUPTED


def _prepare(request: ExecRequest) -> _Job:
    """Find every mistake before a VM is started."""
    bounds = Bounds(size_bytes("--get-limit", request.get_limit), request.transfer_timeout, request.force)
    times = {
        "timeout": request.timeout,
        "idle-timeout": request.idle_timeout,
        "transfer-timeout": request.transfer_timeout,
    }
    for name, seconds in times.items():
        if seconds is not None and not seconds > 0:
            raise ConfigError(f"--{name} {seconds:g} leaves no time; give a positive number of seconds")
    code, name = _load(request)
    return _Job(
        code=code,
        name=name,
        language=request.language or LANGUAGES.get(Path(name).suffix, "python"),
        env=variables(request.env, request.env_file),
        config=TemplateConfig(image=request.image, memory_mib=memory_mib(request.memory)),
        put=[parse_put(text) for text in request.put],
        get=[parse_get(text, force=request.force) for text in request.get],
        bounds=bounds,
    )


async def _exec(request: ExecRequest, job: _Job) -> int:
    template = await Template.ensure(job.config)
    async with template.lease() as vm:
        for transfer in job.put:
            with stage("put a file or directory"):
                skipped = await put(vm, transfer, job.bounds, cwd=request.cwd, user=request.user)
            _tell_skipped("put", transfer, skipped)
        try:
            with stage("execute"):
                result = await _run(vm, request, job)
        except GuestLost as lost:
            if request.as_json and lost.partial is not None:
                say({**_envelope(lost.partial), "kind": "infra", "exit_code": TOOL_FAILED, "error": describe(lost)})
                return TOOL_FAILED
            raise
        failure = await _get_all(vm, job, request)
    status = result.shell_status
    if failure is not None and status == 0:
        status = TOOL_FAILED
    if request.as_json:
        envelope = _envelope(result) | {"exit_code": status}
        if (receipt := vm.receipt) is not None:
            envelope["receipt"] = receipt.document()
        say(envelope if failure is None else envelope | {"error": describe(failure)})
        return status
    if result.outcome is not Outcome.EXITED:
        complain(result.describe())
    if failure is not None:
        report(failure)
    return status


async def _run(vm: VM, request: ExecRequest, job: _Job) -> Result:
    def resize(rows: int, columns: int) -> None:
        if vm.status(_ID) is Status.RUNNING:
            vm.attach(_ID).resize(rows, columns)

    with raw_terminal(resize) if request.pty else nullcontext():
        return await vm.run(
            job.code,
            language=job.language,
            args=request.args,
            name=job.name,
            id=_ID,
            timeout=request.timeout,
            idle_timeout=request.idle_timeout,
            env=job.env,
            cwd=request.cwd,
            user=request.user,
            pty=terminal_size() if request.pty else None,
            stdin=_typed(request),
            on_output=None if request.as_json else pass_on,
            capture_bytes=CAPTURE_BYTES if request.as_json else 0,
        )


def _typed(request: ExecRequest) -> bytes | AsyncIterator[bytes]:
    """Return what the program reads. At a terminal that passes on every key, one way out is kept for the caller."""
    if request.pty and is_interactive():
        return with_escape(standard_input())
    return b"" if request.script == "-" else standard_input()


async def _get_all(vm: VM, job: _Job, request: ExecRequest) -> SandboxError | None:
    """Fetch all that can be fetched, also after a failed script; return the first failure."""
    failure: SandboxError | None = None
    for transfer in job.get:
        try:
            with stage("get a file or directory"):
                report = await get(vm, transfer, job.bounds, cwd=request.cwd, user=request.user)
            _tell_skipped("get", transfer, report.skipped)
            if report.errors:
                number = len(report.errors)
                said = f"--get {transfer.source}: {number} could not be copied: {_some(report.errors)}"
                raise GuestFileError(errno.EIO, said)
        except SandboxError as error:
            failure = failure or error
    return failure


def _tell_skipped(option: str, transfer: Transfer, skipped: Mapping[str, str]) -> None:
    if skipped:
        complain(f"--{option} {transfer.source}: left out {len(skipped)}: {_some(skipped)}")


def _some(reasons: Mapping[str, str]) -> str:
    some = [f"{name} ({why})" for name, why in islice(reasons.items(), 5)]
    return ", ".join([*some, "…"] if len(reasons) > 5 else some)


class ScriptError(ConfigError):
    """The script cannot be read; `status` is what a shell would exit with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _load(request: ExecRequest) -> tuple[str, str]:
    """Return the code and the name that it bears in the guest."""
    if request.code is not None:
        return request.code, "command.py"
    if request.script is None:
        raise ConfigError("nothing to run: name a script, give -c CODE, or - for standard input")
    if request.script == "-":
        if sys.stdin is None:
            raise ConfigError("there is no standard input to read a script from; name a file, or give -c CODE")
        try:
            return _standard_input().decode("utf-8", "surrogateescape"), "stdin.py"
        except OSError as error:
            raise ScriptError(f"standard input cannot be read: {error.strerror or error}", CANNOT_INVOKE) from None
    path = Path(request.script)
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape"), path.name
    except FileNotFoundError:
        raise ScriptError(f"{path}: no such file", NOT_FOUND) from None
    except OSError as error:
        raise ScriptError(f"{path}: {error.strerror}", CANNOT_INVOKE) from None


def _standard_input() -> bytes:
    """Read standard input to its end, also where somebody who shares it does not want to wait for it."""
    pieces: list[bytes] = []
    while True:
        try:
            piece = os.read(0, _READ_BYTES)
        except BlockingIOError:
            select.select([0], [], [])
            continue
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def memory_mib(text: str) -> int:
    """Read a size such as 512, 512M or 2G."""
    match = _MEMORY.match(text.strip())
    if match is None:
        raise ConfigError(f"--memory {text!r} is not a size; write for example 512 (MiB), 512M or 2G")
    return int(match[1]) * (1024 if match[2].lower() == "g" else 1)


def _envelope(result: Result) -> dict[str, object]:
    envelope: dict[str, object] = {
        "kind": _KINDS.get(result.outcome, "signal"),
        "outcome": result.outcome,
        "exit_code": result.shell_status,
        "signal": result.signal,
        "duration": result.duration,
        "cpu_seconds": result.cpu_seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "timings": dict(result.timings),
        "id": result.id,
        "vm": result.vm,
        "accelerator": result.accelerator,
        "isolation": result.isolation,
        "certificate": asdict(result.certificate) if result.certificate is not None else None,
    }
    for name in ("stdout", "stderr"):
        data: bytes = getattr(result, name)
        try:
            envelope[name] = data.decode()
        except UnicodeDecodeError:
            envelope[name] = data.decode("utf-8", "replace")
            envelope[f"{name}_base64"] = base64.b64encode(data).decode()
        envelope[f"{name}_bytes"] = getattr(result, f"{name}_bytes")
        envelope[f"{name}_truncated"] = getattr(result, f"{name}_truncated")
    return envelope
