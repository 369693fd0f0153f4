"""That what was counted from a pool's events is what the pool has counted itself."""

from __future__ import annotations

from sandbox.observe.metrics import Metrics
from sandbox.pool.statistics import PoolStatistics


def total(metrics: Metrics, name: str, **labels: str) -> int:
    """Return the sum of all series of this name whose labels have these values."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples if sample.name == name]
    return int(sum(sample.value for sample in samples if labels.items() <= sample.labels.items()))


def assert_agreement(metrics: Metrics, statistics: PoolStatistics) -> None:
    """Every counter of the statistics has its equal among the metrics, and both keep the laws of conservation."""
    held = total(metrics, "sandbox_leases_ended_total")
    lost = total(metrics, "sandbox_leases_ended_total", why="lost")
    failed = total(metrics, "sandbox_vm_start_failures_total")
    abandoned = total(metrics, "sandbox_vm_starts_abandoned_total")
    deaths = total(metrics, "sandbox_vm_deaths_total")
    ready_deaths = total(metrics, "sandbox_vm_deaths_total", leased="false")
    closed = total(metrics, "sandbox_vm_deaths_total", leased="false", why="closed")
    counted = {
        "claimed": total(metrics, "sandbox_claims_total"),
        "hits": total(metrics, "sandbox_claims_total", hit="true"),
        "lost": lost,
        "released": held - lost,
        "failed_starts": failed,
        "destroyed": deaths + failed + abandoned,
        "expired": ready_deaths - closed,
    }
    assert counted == {name: getattr(statistics, name) for name in counted}
    assert counted["claimed"] == held + statistics.leased
    assert total(metrics, "sandbox_vm_start_seconds_count") + failed + abandoned == (
        statistics.created - statistics.starting
    )
    assert total(metrics, "sandbox_claim_wait_seconds_count") == counted["claimed"]
    assert total(metrics, "sandbox_lease_seconds_count") == held
