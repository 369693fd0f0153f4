"""`sandbox exec`: one script, one fresh VM, streams passed through, the script's exit code as ours."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio

from sandbox.cli.main import CANNOT_INVOKE, NOT_FOUND
from sandbox.cli.run import report, run
from sandbox.config import TemplateConfig
from sandbox.errors import ConfigError, GuestLost, SandboxError
from sandbox.guest.events import StreamName
from sandbox.guest.request import CAPTURE_BYTES
from sandbox.result import Outcome, Result
from sandbox.template.template import Template

_PIPE_BYTES = 4096
_MEMORY = re.compile(r"^(\d+)\s*([mMgG]?)(?:i?[bB])?$")
_KINDS = {Outcome.EXITED: "exit", Outcome.TIMED_OUT: "timeout"}


@dataclass(frozen=True)
class ExecRequest:
    """What the command line asked for, as it was typed."""

    script: str | None
    code: str | None
    args: list[str]
    timeout: float | None
    env: list[str]
    memory: str
    image: str
    as_json: bool


def run_exec(request: ExecRequest) -> int:
    """Run the request and return the exit code."""
    try:
        code, name = _load(request)
        env = dict(_variable(text) for text in request.env)
        config = TemplateConfig(image=request.image, memory_mib=_memory_mib(request.memory))
        if request.timeout is not None and request.timeout <= 0:
            raise ConfigError(f"--timeout {request.timeout:g} leaves no time; give a positive number of seconds")
    except ScriptError as error:
        return report(error, as_json=request.as_json, status=error.status)
    except SandboxError as error:
        return report(error, as_json=request.as_json)
    return run(_exec(request, code, name, env, config), as_json=request.as_json)


async def _exec(request: ExecRequest, code: str, name: str, env: dict[str, str], config: TemplateConfig) -> int:
    template = await Template.ensure(config)
    async with template.lease() as vm:
        try:
            result = await vm.run(
                code,
                args=request.args,
                name=name,
                timeout=request.timeout,
                env=env,
                stdin=b"" if request.script == "-" else _standard_input(),
                on_output=None if request.as_json else _pass_on,
                capture_bytes=CAPTURE_BYTES if request.as_json else 0,
            )
        except GuestLost as lost:
            if request.as_json and lost.partial is not None:
                print(json.dumps({**_envelope(lost.partial), "kind": "infra", "error": _error(lost)}))
                return 125
            raise
    if request.as_json:
        print(json.dumps(_envelope(result)))
    elif result.outcome is not Outcome.EXITED:
        print(f"sandbox: {result.describe()}", file=sys.stderr)
    return result.shell_status


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
        return sys.stdin.buffer.read().decode("utf-8", "surrogateescape"), "stdin.py"
    path = Path(request.script)
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape"), path.name
    except FileNotFoundError:
        raise ScriptError(f"{path}: no such file", NOT_FOUND) from None
    except OSError as error:
        raise ScriptError(f"{path}: {error.strerror}", CANNOT_INVOKE) from None


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if separator:
        return name, value
    if name not in os.environ:
        raise ConfigError(f"--env {name}: you have no such variable to pass on; write --env {name}=VALUE")
    return name, os.environ[name]


def _memory_mib(text: str) -> int:
    match = _MEMORY.match(text.strip())
    if match is None:
        raise ConfigError(f"--memory {text!r} is not a size; write for example 512 (MiB), 512M or 2G")
    return int(match[1]) * (1024 if match[2].lower() == "g" else 1)


async def _standard_input() -> AsyncIterator[bytes]:
    """Yield our standard input as it comes; end where it ends or is closed."""
    if sys.stdin is None:  # we were started without one: descriptor 0 is somebody else's by now
        return
    while True:
        try:
            await anyio.wait_readable(0)
        except PermissionError:  # a regular file or /dev/null: always readable, and the poller will not have it
            pass
        except (OSError, ValueError):  # closed
            return
        data = os.read(0, 64 * 1024)
        if not data:
            return
        yield data


async def _pass_on(stream: StreamName, data: bytes) -> None:
    """Write guest output without ever blocking the event loop, so that time-outs and Ctrl-C work while nobody reads."""
    descriptor = 1 if stream == "stdout" else 2
    view = memoryview(data)
    while view:
        piece = view
        try:
            await anyio.wait_writable(descriptor)
            piece = view[:_PIPE_BYTES]  # a pipe that polls as writable takes so much without blocking
        except PermissionError:  # a regular file
            pass
        view = view[os.write(descriptor, piece) :]


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


def _error(error: SandboxError) -> dict[str, str]:
    return {"code": error.code, "message": str(error)}
