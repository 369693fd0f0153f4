"""Metrics of real pools: what is counted is what happened, whoever asks from which thread."""

from __future__ import annotations

import os
import signal
import sys
import threading

import anyio
import pytest
from anyio.to_thread import run_sync
from prometheus_client import REGISTRY, CollectorRegistry

from sandbox.config import PoolConfig
from sandbox.errors import ConfigError, GuestLost, PoolTimeout
from sandbox.event import EventKind, LifeEvent
from sandbox.observe.metrics import Metrics
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template
from tests.agreement import assert_agreement, total


async def test_metrics_agree_with_the_statistics(template: Template) -> None:
    """After hits, waits, refusals, losses and a close in the midst of starts, both have counted the same."""
    metrics = Metrics()
    config = PoolConfig(min_size=1, max_size=2, running_ready=1)
    async with VMPool(config, source=template.warmed(), observers=[metrics]) as pool:
        metrics.watch(pool)
        await pool.wait_ready()
        async with pool.acquire() as vm:
            assert (await vm.run("print('x' * 100)")).ok
            async with pool.acquire() as other:
                with pytest.raises(PoolTimeout):
                    await pool.claim(timeout=0.01)
                os.kill(other.pid, signal.SIGKILL)
                with pytest.raises(GuestLost):
                    await other.run("input()")
            assert_agreement(metrics, pool.statistics())
        assert (await pool.run("raise SystemExit(3)")).exit_code == 3
        statistics = pool.statistics()
        states = ("starting", "ready", "leased", "ending")
        seen = {state: total(metrics, "sandbox_vms", state=state) for state in states}
        assert seen == {state: getattr(statistics, state) for state in seen}
    assert_agreement(metrics, pool.statistics())
    assert total(metrics, "sandbox_claim_refusals_total", code="POOL_TIMEOUT") == 1
    assert total(metrics, "sandbox_vm_deaths_total", why="lost", cause="qemu_killed") == 1
    assert total(metrics, "sandbox_executions_ended_total", outcome="exited", cause="") == 1
    assert total(metrics, "sandbox_executions_ended_total", cause="exit_status") == 1
    assert total(metrics, "sandbox_execution_output_bytes_total") >= 101
    assert total(metrics, "sandbox_executions_started_total") == total(metrics, "sandbox_execution_seconds_count") == 3
    assert total(metrics, "sandbox_vms") == 0, "a closed pool has no sizes"


async def test_sizes_are_asked_of_the_loop_from_any_thread(pool: VMPool) -> None:
    """A scrape in another thread gets the pool's numbers of that moment; while the loop is busy, the last known."""
    metrics = Metrics()
    metrics.watch(pool)
    assert 'sandbox_vms{state="ready",template="default"} 2.0' in await run_sync(metrics.text)
    lease = await pool.claim()
    assert 'sandbox_vms{state="leased",template="default"} 1.0' in await run_sync(metrics.text)
    lease.release_nowait()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(metrics.text()))
    thread.start()
    thread.join(10)  # this blocks the loop, as a caller's mistake would
    assert 'sandbox_vms{state="leased",template="default"} 1.0' in found[0]
    with anyio.fail_after(10):
        await lease.release()
    assert 'sandbox_vms{state="leased",template="default"} 0.0' in await run_sync(metrics.text)


class _Following:
    """The same clones, of the generation that follows."""

    def __init__(self, template: Template) -> None:
        self.generation = template.generation + 1
        self.lease = template.lease


async def test_generations_are_told_apart(template: Template) -> None:
    """VMs are counted by the generation that they come from; the live one, of which the next VM will be, is told."""
    metrics = Metrics()
    following = _Following(template)

    def seen() -> tuple[int, dict[str, int]]:
        names = [str(template.generation), str(following.generation)]
        counts = {name: total(metrics, "sandbox_generation_vms", generation=name) for name in names}
        assert sum(counts.values()) == total(metrics, "sandbox_vms")
        return total(metrics, "sandbox_live_generation"), counts

    former, live = str(template.generation), str(following.generation)
    async with VMPool(PoolConfig(min_size=0, max_size=2), source=template) as pool:
        metrics.watch(pool)
        assert seen() == (template.generation, {former: 0, live: 0})
        async with pool.acquire():
            pool._keeper.shelves["default"].replace_source(following)
            assert seen() == (following.generation, {former: 1, live: 0})
            async with pool.acquire():
                assert seen() == (following.generation, {former: 1, live: 1})
    assert seen() == (0, {former: 0, live: 0}), "a closed pool has none"


def test_no_metric_is_in_the_global_registry() -> None:
    """Two of them do not collide, and neither is seen where it was not asked for."""
    shared = CollectorRegistry()
    assert Metrics().registry is not Metrics().registry
    assert Metrics(shared).registry is shared
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("sandbox")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "many", None, True])
def test_number_of_a_guest_cannot_spoil_a_counter(value: object) -> None:
    """What is no finite number from 0 on counts as nothing, or the counter would be useless for good."""
    metrics = Metrics()
    for told in (value, 2.0):
        metrics(LifeEvent(EventKind.EXECUTION_ENDED, "p", "default", "vm", fields={"cpu_seconds": told}))
    assert total(metrics, "sandbox_execution_cpu_seconds_total") in (2, 3)


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [("prometheus_client", "Metrics", "metrics"), ("opentelemetry", "Tracing", "otel")],
)
def test_missing_package_is_told_with_the_line_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, extra: str
) -> None:
    """The class can be named without its extra, and says what to install when it is made."""
    import sandbox

    kind = getattr(sandbox, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'sandbox-vmpool\[{extra}\]'"):
        kind()
