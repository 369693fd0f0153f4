"""The rules against tables of events: what is found, whom it names, and what is not found."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from sandbox.errors import ConfigError
from sandbox.event import EventKind, LifeEvent
from sandbox.observe.anomaly import Anomalies
from sandbox.observe.rules import Anomaly, CpuStorm, DeathRate, HitRate, RestoreDrift, Rule, SpawnStorm

Told = list[tuple[float, LifeEvent]]


def event(kind: EventKind, vm: str = "a", *, seconds: float = 0.0, **fields: object) -> LifeEvent:
    return LifeEvent(kind, "pool", "default", vm, f"{vm}.1", "x", seconds, fields)


def starts(seconds: Iterable[float]) -> Told:
    return [(float(i), event(EventKind.VM_STARTED, seconds=took)) for i, took in enumerate(seconds)]


def deaths(whys: Iterable[str], step: float = 1.0) -> Told:
    return [
        (i * step, event(EventKind.VM_DESTROYED, f"v{i}", why=why, cause="qemu_killed" if why == "lost" else None))
        for i, why in enumerate(whys)
    ]


def births(count: int, now: float = 0.0) -> Told:
    return [(now, event(EventKind.VM_STARTED, f"v{i}")) for i in range(count)]


def failures(count: int) -> Told:
    return [(float(i), event(EventKind.VM_START_FAILED, "", code="START")) for i in range(count)]


def claims(hits: Iterable[bool]) -> Told:
    return [(float(i), event(EventKind.LEASE_BEGAN, hit=hit)) for i, hit in enumerate(hits)]


def programs(count: int, step: float, vm: str = "a") -> Told:
    return [(i * step, event(EventKind.EXECUTION_STARTED, vm)) for i in range(count)]


def found(rule: Rule, told: Told) -> list[Anomaly]:
    return [finding for now, one in told for finding in rule.see(one, now)]


TABLE: list[tuple[str, Callable[[], Rule], Told, int, str]] = [
    ("steady starts", RestoreDrift, starts([0.15, 0.2] * 40), 0, ""),
    ("starts twice and a half as slow", RestoreDrift, starts([0.2] * 30 + [0.5] * 5), 1, "0.500 s"),
    ("one slow start", RestoreDrift, starts([0.2] * 30 + [9.0] + [0.2] * 9), 0, ""),
    ("slow, but too few to compare with", RestoreDrift, starts([0.2] * 15 + [2.0] * 5), 0, ""),
    ("double of very little", RestoreDrift, starts([0.01] * 30 + [0.03] * 5), 0, ""),
    ("slow, well, slow again", RestoreDrift, starts([0.2] * 40 + [0.8] * 5 + [0.2] * 60 + [0.8] * 5), 2, ""),
    ("VMs end as they should", DeathRate, deaths(["released"] * 50), 0, ""),
    ("three of ten lost", DeathRate, deaths(["released"] * 7 + ["lost"] * 3), 1, "v9 (qemu_killed)"),
    ("two lost", DeathRate, deaths(["lost"] * 2), 0, ""),
    ("three of a hundred lost", DeathRate, deaths(["released"] * 97 + ["lost"] * 3, step=0.1), 0, ""),
    ("three lost, one every minute", DeathRate, deaths(["lost"] * 3, step=61), 0, ""),
    ("starts fail", DeathRate, failures(4), 1, "3 of 3 VMs failed within 60 s, the latest: a start (START)"),
    ("three of a hundred do not start", DeathRate, births(97) + failures(3), 0, ""),
    ("three of ten do not start", DeathRate, births(7) + failures(3), 1, "3 of 10 VMs failed"),
    ("three of fourteen that started are lost", DeathRate, births(14) + deaths(["lost"] * 3), 1, "3 of 14 VMs failed"),
    ("VMs start and end", DeathRate, births(12) + deaths(["released"] * 12) + failures(3), 1, "3 of 15 VMs failed"),
    ("three of very many that started long ago", DeathRate, births(97, -100.0) + failures(3), 1, "3 of 3 VMs failed"),
    ("lost one after the other", DeathRate, deaths(["lost"] * 30), 1, ""),
    ("all hits", HitRate, claims([True] * 100), 0, ""),
    ("no hits", HitRate, claims([False] * 100), 1, "0 of 20"),
    ("few claims", HitRate, claims([False] * 19), 0, ""),
    ("a hit now and then", HitRate, claims([True, True, False] * 30), 0, ""),
    ("programs now and then", SpawnStorm, programs(400, 0.1), 0, ""),
    ("a storm of programs", SpawnStorm, programs(501, 0.01), 1, "500 programs were started in a"),
    ("many programs in many VMs", SpawnStorm, [one for i in range(10) for one in programs(100, 0.01, f"v{i}")], 0, ""),
]


@pytest.mark.parametrize(("rule", "told", "count", "said"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_rule_finds_what_it_should_and_no_more(rule: Callable[[], Rule], told: Told, count: int, said: str) -> None:
    """Each sequence of events gives so many findings, and the first one says what is expected."""
    findings = found(rule(), told)
    assert len(findings) == count
    assert all(said in finding.said for finding in findings[:1])


@pytest.mark.parametrize(
    ("loads", "count"),
    [
        ([0.0] * 20, 0),
        ([1.0] * 9, 0),
        ([1.0] * 11, 1),
        ([1.0] * 30, 1),
        ([0.5] * 30, 0),
        ([1.0] * 15 + [0.0] * 15 + [1.0] * 15, 2),
        ([1.0] * 8 + [0.0] * 8 + [1.0] * 8, 0),
    ],
)
def test_processor_storm_is_sustained_load_of_one_vm(loads: list[float], count: int) -> None:
    """A VM is named once it was busy for the whole time, and again only after it was quiet; a quiet one never is."""
    rule = CpuStorm(cores=0.9, seconds=10.0, kill=True)
    for name in ("busy", "quiet"):
        rule.see(event(EventKind.VM_STARTED, name), 0.0)
    findings, used = [], 0.0
    for now, load in enumerate([0.0, *loads]):
        used += load
        findings += rule.sample("busy", used, float(now)) + rule.sample("quiet", now * 0.02, float(now))
    assert len(findings) == count
    assert {finding.vm for finding in findings} <= {"busy"}
    assert all(finding.kill and finding.lease == "busy.1" for finding in findings)


def test_rules_forget_vms_that_are_gone() -> None:
    """What is kept of a VM goes with it, so a pool that runs for months keeps nothing of its former VMs."""
    cpu, spawn = CpuStorm(), SpawnStorm()
    for i in range(100):
        for rule in (cpu, spawn):
            rule.see(event(EventKind.VM_STARTED, f"v{i}"), i)
            rule.see(event(EventKind.EXECUTION_STARTED, f"v{i}"), i)
        cpu.sample(f"v{i}", 1.0, i)
        for rule in (cpu, spawn):
            rule.see(event(EventKind.VM_DESTROYED, f"v{i}", why="released"), i)
        cpu.sample(f"v{i}", 1.0, i)  # read before it ended, handed over after
    assert not any((cpu._samples, cpu._homes, cpu._is_told, spawn._starts, spawn._is_told))


@pytest.mark.parametrize(("ends", "did"), [(True, "killed"), (False, "gone")])
def test_what_was_done_is_told(ends: bool, did: str) -> None:
    """A rule that kills has the pool end the VM that it names, and the event says whether there was one to end."""
    said: list[LifeEvent] = []
    killed: list[str] = []

    def end_vm(name: str) -> bool:
        killed.append(name)
        return ends

    watch = Anomalies([SpawnStorm(per_second=1, seconds=2, kill=True)])
    watch.join_pool("pool", said.append, end_vm)
    for _ in range(2):
        watch(event(EventKind.EXECUTION_STARTED, "a"))
    assert killed == ["a"]
    assert [(one.kind, one.pool, one.vm, one.lease, one.fields["did"]) for one in said] == [
        (EventKind.ANOMALY, "pool", "a", "a.1", did)
    ]


def test_each_pool_needs_its_own() -> None:
    """Rules of one pool must not mix its events with another's."""
    watch = Anomalies([])
    watch.join_pool("one", lambda _: None, lambda _: False)
    with pytest.raises(ConfigError, match="each pool needs its own"):
        watch.join_pool("other", lambda _: None, lambda _: False)
