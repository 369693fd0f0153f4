"""Observers of real pools: the audit log, traces, and the example of the documentation."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from sandbox.config import PoolConfig
from sandbox.errors import GuestLost
from sandbox.event import LifeEvent
from sandbox.observe.audit_log import AuditLog
from sandbox.observe.tracing import Tracing
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template

DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"


async def test_audit_log_tells_the_story_without_the_secrets(template: Template, tmp_path: Path) -> None:
    """All that happened to each VM is there in order; what was run, given, written and named in the guest is not."""
    path = tmp_path / "audit.jsonl"
    secret = secrets.token_hex(16)
    code = f"import sys, os; print('{secret}', os.environ['K'], sys.argv, sys.stdin.read())"
    async with AuditLog(path) as audit:
        config = PoolConfig(min_size=1, max_size=2)
        async with VMPool(config, source=template.warmed(), observers=[audit]) as pool, pool.acquire() as vm:
            options = {"env": {"K": secret}, "stdin": secret.encode(), "id": "mine"}
            result = await vm.run(code, args=[secret], **options)  # type: ignore[arg-type]
            await vm.write_file(f"/tmp/{secret}", secret.encode())
            await vm.exec(["sh", "-c", f"exit 3; {secret}"])
            name = vm.name
    assert result.text.count(secret) == 4
    text = await anyio.Path(path).read_text()
    assert secret not in text
    lines = [json.loads(line) for line in text.splitlines()]
    story = [line["kind"] for line in lines if line.get("vm") == name]
    assert story[:2] == ["vm_started", "lease_began"]
    assert story.count("lease_ended") == story.count("vm_destroyed") == 1
    assert story[-1] == "vm_destroyed"
    assert story.count("execution_started") == story.count("execution_ended") >= 2
    ended = next(line for line in lines if line["kind"] == "execution_ended" and line["execution"] == "mine")
    assert (ended["outcome"], ended["exit_code"], ended["output_bytes"]) == ("exited", 0, len(result.stdout))
    assert len(lines[1]["receipt"]["machine_id"]) == 32
    assert [lines[0]["kind"], lines[-1]["kind"]] == ["pool_opened", "pool_closed"]


async def test_lease_is_a_span_with_its_parts(template: Template) -> None:
    """Wait, restore and executions are its children; it is a child of the claim's own span, also after a wait."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    tracing = Tracing(provider)

    async def use(name: str) -> None:
        with tracer.start_as_current_span(name):
            async with pool.acquire() as vm:
                await vm.run("print(1)")

    config = PoolConfig(min_size=1, max_size=1)
    async with VMPool(config, source=template.warmed(), observers=[tracing]) as pool:
        await pool.wait_ready()
        async with anyio.create_task_group() as group:  # one VM: the second has to wait for the next one
            group.start_soon(use, "first")
            group.start_soon(use, "second")
        async with pool.acquire() as vm:
            with pytest.raises(GuestLost):
                await vm.exec("kill -9 1; echo c >/proc/sysrq-trigger", user="root")
    spans = exporter.get_finished_spans()
    leases = [span for span in spans if span.name == "sandbox.lease"]
    assert len(leases) == 3
    callers = {span.name: span for span in spans if span.name in ("first", "second")}
    parents = [span.parent.span_id if span.parent else None for span in leases]
    assert parents == [*(callers[name].context.span_id for name in ("first", "second")), None]
    for lease in leases:
        parts = children(spans, lease)
        assert sorted(part.name for part in parts) == ["sandbox.execution", "sandbox.queue", "sandbox.restore"]
        assert len({attribute(part, "vm") for part in (lease, *parts)}) == 1
        assert all(part.end_time is not None and start_of(part) <= part.end_time for part in (lease, *parts))
    assert [attribute(lease, "hit") for lease in leases][:2] == [True, False]
    assert [lease.status.status_code for lease in leases] == [StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR]
    assert attribute(leases[2], "why") == "lost"
    assert not tracing._vms
    waited = next(part for part in children(spans, leases[1]) if part.name == "sandbox.queue")
    assert waited.end_time is not None
    assert waited.end_time - start_of(waited) > 50_000_000


def children(spans: tuple[ReadableSpan, ...], parent: ReadableSpan) -> list[ReadableSpan]:
    return [span for span in spans if span.parent is not None and span.parent.span_id == parent.context.span_id]


def attribute(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(f"sandbox.{name}")


def start_of(span: ReadableSpan) -> int:
    assert span.start_time is not None
    return span.start_time


async def test_observer_may_come_and_go(pool: VMPool) -> None:
    """A hook that was added later hears what happens from then on, until it is taken out."""
    heard: list[LifeEvent] = []
    stop = pool.observe(heard.append)
    await pool.run("print(1)")
    stop()
    count = len(heard)
    await pool.run("print(1)")
    assert len(heard) == count > 0


@pytest.mark.usefixtures("template")
def test_example_of_the_documentation_runs(tmp_path: Path) -> None:
    """The page's program does what the page says that it prints and writes."""
    program, shown = re.findall(r"```(?:python|text)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[:2]
    script = tmp_path / "example.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert kinds.count("execution_ended") == 1
