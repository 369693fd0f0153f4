"""`sandbox trace`: a boot, restore or execution, stage by stage on the host, in QEMU and in the guest, as a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console

from sandbox.bench.environment import environment
from sandbox.cli.defaults import chosen
from sandbox.cli.exec import Run, run_exec
from sandbox.cli.exec_request import ExecRequest
from sandbox.cli.given import Given
from sandbox.cli.report_file import check_report_file, write_report_file
from sandbox.cli.run import complain, describe, discard_output, report, run
from sandbox.cold_boot import ColdBoot
from sandbox.config import HostConfig, TemplateConfig
from sandbox.errors import HostFileError, SandboxError
from sandbox.hypervisor.host import Hypervisor
from sandbox.image.build import image_of
from sandbox.image.store import ImageStore
from sandbox.image.wanted import while_wanted
from sandbox.log import log
from sandbox.template.template import Template
from sandbox.trace.event_json import event_json
from sandbox.trace.picture import html
from sandbox.trace.recorder import Recorder, recording
from sandbox.trace.row import rows
from sandbox.trace.span import Span
from sandbox.trace.stage import stage
from sandbox.trace.waterfall import waterfall

Facts = Callable[[], Awaitable[dict[str, object]]]
_PLAIN_WIDTH = 110


@dataclass(frozen=True)
class TraceRequest:
    """How a trace is made and shown."""

    json: Path | None
    html: Path | None
    shortest_ms: float
    warm_up: int = 0


def run_trace_exec(request: ExecRequest, trace: TraceRequest) -> int:
    """Do what `sandbox exec` does, and show a trace of it on standard error; return the script's exit code."""
    try:
        check_report_file("--json", trace.json)
        check_report_file("--html", trace.html)
    except SandboxError as error:
        return report(error)

    async def traced(command: Run, config: TemplateConfig) -> int:
        await _warm_up(config, trace.warm_up)
        return await _traced("exec", command, lambda: _facts(config), trace, sys.stderr)

    return run_exec(request, traced)


def run_trace_restore(given: Given, trace: TraceRequest) -> int:
    """Restore one VM and destroy it; show a trace of it on standard output."""
    try:
        config = _checked(given, trace)
    except SandboxError as error:
        return report(error)

    async def restore() -> int:
        template = await Template.ensure(config)
        async with template.lease():
            return 0

    async def traced() -> int:
        await _warm_up(config, trace.warm_up)
        return await _traced("restore", restore, lambda: _facts(config), trace, sys.stdout)

    return run(traced())


def run_trace_boot(given: Given, trace: TraceRequest) -> int:
    """Boot one VM and destroy it; show a trace of it on standard output."""
    try:
        config = _checked(given, trace)
    except SandboxError as error:
        return report(error)

    async def source() -> tuple[Hypervisor, ColdBoot]:
        host = HostConfig()
        found = await while_wanted(image_of, config.image, ImageStore(host.paths.images), log.progress)
        hypervisor = await Hypervisor.connect(host)
        return hypervisor, ColdBoot(hypervisor, found, memory_mib=config.memory_mib, vcpus=config.vcpus)

    async def boot() -> int:
        with stage("open libvirt, find the image"):
            _, booted = await source()
        async with booted.lease():
            return 0

    async def facts() -> dict[str, object]:
        hypervisor, booted = await source()
        return environment(hypervisor, booted.spec)

    return run(_traced("boot", boot, facts, trace, sys.stdout))


def _checked(given: Given, trace: TraceRequest) -> TemplateConfig:
    """Find every mistake before a VM is started."""
    check_report_file("--json", trace.json)
    check_report_file("--html", trace.html)
    return chosen(given).template


async def _warm_up(config: TemplateConfig, count: int) -> None:
    """Restore so many clones."""
    if count:
        template = await Template.ensure(config)
        for _ in range(count):
            async with template.lease():
                pass


async def _facts(config: TemplateConfig) -> dict[str, object]:
    template = await Template.ensure(config)
    return environment(template.host, template.spec)


async def _traced(what: str, command: Run, environs: Facts, trace: TraceRequest, out: TextIO) -> int:
    """Run the command and show what was recorded of it, also if it failed."""
    facts: dict[str, object] = {}
    recorder: Recorder | None = None
    try:
        with recording() as recorder, stage(f"sandbox {what}"):
            status = await command()
        facts = await environs()
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
