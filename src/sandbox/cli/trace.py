"""`sandbox trace`: one restore or one execution, stage by stage on the host, in QEMU and in the guest, as a picture."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console

from sandbox.bench.environment import environment
from sandbox.cli.exec import Command, ExecRequest, memory_mib, run_exec
from sandbox.cli.report_file import check_report_file, write_report_file
from sandbox.cli.run import complain, describe, discard_output, report, run
from sandbox.config import TemplateConfig
from sandbox.errors import HostFileError, SandboxError
from sandbox.template.template import Template
from sandbox.trace.event_json import event_json
from sandbox.trace.picture import html
from sandbox.trace.recorder import Recorder, recording
from sandbox.trace.row import rows
from sandbox.trace.span import Span
from sandbox.trace.stage import stage
from sandbox.trace.waterfall import waterfall

_PLAIN_WIDTH = 110


@dataclass(frozen=True)
class TraceRequest:
    """How a trace is made and shown."""

    json: Path | None
    html: Path | None
    warm_up: int
    shortest_ms: float


def run_trace_exec(request: ExecRequest, trace: TraceRequest) -> int:
    """Do what `sandbox exec` does, and show a trace of it on standard error; return the script's exit code."""
    try:
        check_report_file("--json", trace.json)
        check_report_file("--html", trace.html)
    except SandboxError as error:
        return report(error)
    return run_exec(request, lambda command, config: _traced("exec", command, config, trace, sys.stderr))


def run_trace_restore(image: str, memory: str, trace: TraceRequest) -> int:
    """Restore one VM and destroy it; show a trace of it on standard output."""
    try:
        check_report_file("--json", trace.json)
        check_report_file("--html", trace.html)
        config = TemplateConfig(image=image, memory_mib=memory_mib(memory))
    except SandboxError as error:
        return report(error)
    return run(_traced("restore", lambda: _restore(config), config, trace, sys.stdout))


async def _restore(config: TemplateConfig) -> int:
    template = await Template.ensure(config)
    async with template.lease():
        return 0


async def _traced(what: str, command: Command, config: TemplateConfig, trace: TraceRequest, out: TextIO) -> int:
    """Run the command and show what was recorded of it, also if it failed."""
    if trace.warm_up:
        template = await Template.ensure(config)
        for _ in range(trace.warm_up):
            async with template.lease():
                pass
    facts: dict[str, object] = {}
    recorder: Recorder | None = None
    try:
        with recording() as recorder, stage(f"sandbox {what}"):
            status = await command()
        template = await Template.ensure(config)
        facts = environment(template.host, template.spec)
    except BaseException:
        if recorder is not None:
            try:
                _show(what, recorder.spans(), facts, trace, out)
            except HostFileError as error:  # the first failure is what is told by the exit code
                complain(describe(error)["message"])
        raise
    _show(what, recorder.spans(), facts, trace, out)
    return status


def _show(what: str, spans: list[Span], facts: dict[str, object], trace: TraceRequest, out: TextIO) -> None:
    """Print the picture and write the files that were asked for."""
    shown = rows(spans, trace.shortest_ms / 1000)
    if trace.json is not None:
        write_report_file("--json", trace.json, json.dumps(event_json(spans, facts), indent=1) + "\n")
    if trace.html is not None:
        write_report_file("--html", trace.html, html(f"sandbox trace {what}", shown, facts))
    console = Console(file=out)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    is_unicode = console.encoding.lower().startswith("utf")
    picture = waterfall(shown, console.width, block="█" if is_unicode else "#", sliver="▏" if is_unicode else "|")
    try:
        console.print(picture)
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if out is sys.stdout:
            discard_output()
        raise HostFileError(error.errno, f"the picture cannot be written: {error.strerror}") from error
