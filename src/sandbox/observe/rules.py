"""What is taken for an anomaly: rules over events and samples of processor time. No clock, no I/O, no action."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol, runtime_checkable

from sandbox.event import EventKind, LifeEvent


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What a rule found. It is told once; again only after the rule has seen better."""

    rule: str
    said: str
    """One line for people, with the numbers."""
    template: str = ""
    vm: str = ""
    """The VM that is to blame, where one is."""
    lease: str = ""
    kill: bool = False
    """Whether the rule asks for the VM's end."""


class Rule(Protocol):
    """`now` is seconds of a monotonic clock, the same for events and samples."""

    def see(self, event: LifeEvent, now: float) -> list[Anomaly]:
        """Take an event."""
        ...


@runtime_checkable
class SampleRule(Rule, Protocol):
    """A rule that looks at processor time, too."""

    def sample(self, vm: str, cpu_seconds: float, now: float) -> list[Anomaly]:
        """Take the processor time that a VM's QEMU has used since it began, as the host's kernel counts it."""
        ...


@dataclass
class RestoreDrift:
    """VMs become ready more slowly than they did: the median of the latest against that of those before them."""

    factor: float = 2.0
    latest: int = 5
    baseline: int = 50
    enough: int = 20
    """So many must be in the baseline before anything is said."""
    least: float = 0.05
    """Seconds; a difference below it is noise."""
    _seen: dict[str, deque[float]] = field(default_factory=dict, init=False)
    _is_told: set[str] = field(default_factory=set, init=False)

    def see(self, event: LifeEvent, now: float) -> list[Anomaly]:
        if event.kind is not EventKind.VM_STARTED or event.seconds is None:
            return []
        seen = self._seen.setdefault(event.template, deque(maxlen=self.baseline + self.latest))
        seen.append(event.seconds)
        values = list(seen)
        before, late = values[: -self.latest], values[-self.latest :]
        if len(before) < self.enough:
            return []
        usual, present = median(before), median(late)
        is_slow = present > usual * self.factor and present - usual >= self.least
        if not _is_news(self._is_told, event.template, is_slow):
            return []
        said = f"starts take {present:.3f} s, the median of {len(late)}; it was {usual:.3f} s of {len(before)} before"
        return [Anomaly("restore_drift", said, event.template)]


@dataclass
class DeathRate:
    """Many VMs are lost, or do not come up, of those that came up, should have, or ended lately; each counts once."""

    share: float = 0.2
    least: int = 3
    """So many at least."""
    seconds: float = 60.0
    _seen: dict[object, tuple[float, str]] = field(default_factory=dict, init=False)
    """By VM, when something was last heard of it, and what is said of one that failed; empty for one that does well."""
    _is_told: set[str] = field(default_factory=set, init=False)

    def see(self, event: LifeEvent, now: float) -> list[Anomaly]:
        if event.kind is EventKind.VM_START_FAILED:
            failure = f"a start ({event.fields.get('code')})"
        elif event.kind is EventKind.VM_DESTROYED and event.fields.get("why") == "lost":
            failure = f"{event.vm} ({event.fields.get('cause')})"
        elif event.kind in (EventKind.VM_STARTED, EventKind.VM_DESTROYED):
            failure = ""
        else:
            return []
        self._take(event.vm or object(), now, failure)  # a start that failed has no name
        lost = [failure for _, failure in self._seen.values() if failure]
        if not _is_news(self._is_told, "", len(lost) >= max(self.least, self.share * len(self._seen))):
            return []
        latest = ", ".join(lost[-self.least :])
        said = f"{len(lost)} of {len(self._seen)} VMs failed within {self.seconds:g} s, the latest: {latest}"
        return [Anomaly("death_rate", said, event.template)]

    def _take(self, vm: object, now: float, failure: str) -> None:
        """Keep the latest of each VM, the oldest first, as long as it counts."""
        self._seen.pop(vm, None)
        self._seen[vm] = (now, failure)
        while next(iter(self._seen.values()))[0] < now - self.seconds:
            del self._seen[next(iter(self._seen))]


@dataclass
class HitRate:
    """Few claims find a VM ready: the pool is too small for what is asked of it."""

    share: float = 0.5
    claims: int = 50
    """Of so many latest claims."""
    enough: int = 20
    _seen: dict[str, deque[bool]] = field(default_factory=dict, init=False)
    _is_told: set[str] = field(default_factory=set, init=False)

    def see(self, event: LifeEvent, now: float) -> list[Anomaly]:
        if event.kind is not EventKind.LEASE_BEGAN:
            return []
        seen = self._seen.setdefault(event.template, deque(maxlen=self.claims))
        seen.append(bool(event.fields.get("hit")))
        is_low = len(seen) >= self.enough and sum(seen) < self.share * len(seen)
        if not _is_news(self._is_told, event.template, is_low):
            return []
        said = f"{sum(seen)} of {len(seen)} claims found a VM ready; a larger min_size or max_ready would help"
        return [Anomaly("hit_rate", said, event.template)]


@dataclass
class CpuStorm:
    """One VM's QEMU keeps the host's processors busy without a pause."""

    cores: float = 0.9
    """So much of a processor, or of several, over `seconds`. Under emulation a VM of one processor may use two."""
    seconds: float = 60.0
    kill: bool = False
    _samples: dict[str, deque[tuple[float, float]]] = field(default_factory=dict, init=False)
    _homes: dict[str, LifeEvent] = field(default_factory=dict, init=False)
    _is_told: set[str] = field(default_factory=set, init=False)

    def see(self, event: LifeEvent, now: float) -> list[Anomaly]:
        if event.kind in (EventKind.VM_STARTED, EventKind.LEASE_BEGAN):
            self._homes[event.vm] = event
        elif event.kind is EventKind.VM_DESTROYED:
            self._homes.pop(event.vm, None)
            self._samples.pop(event.vm, None)
            self._is_told.discard(event.vm)
        return []

    def sample(self, vm: str, cpu_seconds: float, now: float) -> list[Anomaly]:
        if (home := self._homes.get(vm)) is None:
            return []
        samples = self._samples.setdefault(vm, deque())
        samples.append((now, cpu_seconds))
        while len(samples) > 1 and samples[1][0] <= now - self.seconds:  # one sample that old is kept: the beginning
            samples.popleft()
        began, used = samples[0]
        if now - began < self.seconds:
            return []
        load = (cpu_seconds - used) / (now - began)
        if not _is_news(self._is_told, vm, load >= self.cores):
            return []
        said = f"{vm} used {load:.2f} processors for {now - began:.0f} s"
        return [Anomaly("cpu_storm", said, home.template, vm, home.lease, self.kill)]


@dataclass
class SpawnStorm:
    """Very many programs are started in one VM, as the host has sent them; what a guest tells is not asked."""

    per_second: float = 50.0
    seconds: float = 10.0
    kill: bool = False
    _starts: dict[str, deque[tuple[float, str]]] = field(default_factory=dict, init=False)
    _is_told: set[str] = field(default_factory=set, init=False)

    def see(self, event: LifeEvent, now: float) -> list[Anomaly]:
        if event.kind is EventKind.VM_DESTROYED:
            self._starts.pop(event.vm, None)
            self._is_told.discard(event.vm)
        if event.kind is not EventKind.EXECUTION_STARTED:
            return []
        starts = self._starts.setdefault(event.vm, deque())
        starts.append((now, event.execution))
        _forget(starts, now - self.seconds)
        if not _is_news(self._is_told, event.vm, len(starts) >= self.per_second * self.seconds):
            return []
        said = f"{len(starts)} programs were started in {event.vm} within {self.seconds:g} s"
        return [Anomaly("spawn_storm", said, event.template, event.vm, event.lease, self.kill)]


def default_rules() -> Sequence[Rule]:
    """Return one of each, none of which kills."""
    return [RestoreDrift(), DeathRate(), HitRate(), CpuStorm(), SpawnStorm()]


def _is_news(told: set[str], key: str, is_bad: bool) -> bool:
    """Return whether something has turned bad; it counts anew after it was good in between."""
    if not is_bad:
        told.discard(key)
        return False
    if key in told:
        return False
    told.add(key)
    return True


def _forget(seen: deque[tuple[float, str]], before: float) -> None:
    while seen and seen[0][0] < before:
        seen.popleft()
