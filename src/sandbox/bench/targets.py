"""What each figure should reach, for each accelerator, and the figures whose feature does not exist yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sandbox.bench.figure import Figure

Verdict = Literal["met", "missed", "no target"]
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """Bounds in the figure's own unit; those that are None do not count."""

    p50: float | None = None
    p99: float | None = None
    most: float | None = None
    """For every single sample."""
    least: float | None = None
    """For the median, where more is better."""
    raw_ratio: float | None = None

    def missed_by(self, figure: Figure) -> list[str]:
        """Return a few words for each bound that the figure does not keep."""
        pairs = [
            ("p50", figure.p50, self.p50),
            ("p99", figure.p99, self.p99),
            ("most", max(figure.samples), self.most),
        ]
        show = figure.show
        missed = [f"{name} {show(found)} > {show(bound)}" for name, found, bound in pairs if bound and found > bound]
        if self.least is not None and figure.p50 < self.least:
            missed.append(f"p50 {show(figure.p50)} < {show(self.least)}")
        if self.raw_ratio is not None and figure.raw_ratio is not None and figure.raw_ratio > self.raw_ratio:
            missed.append(f"ratio to raw {figure.raw_ratio:.3g} > {self.raw_ratio:g}")
        return missed


_SAME = {
    "A1": Target(p50=0.001, p99=0.005),
    "A2": Target(most=0.010),
    "B3": Target(p50=0.08),
    "C2": Target(p50=1.0 * MIB),
    "E7": Target(p99=0.250),
    "L1": Target(p50=1.4),
    "M3": Target(p50=0.02),
    "S1": Target(p50=0.100),
    "S8PAUSE": Target(p50=0.020),
    "M2": Target(p99=0.010),
    "A1FLAT": Target(p50=2.0),
}
_TCG_AND_KVM = {
    "B1": (Target(p50=2.0), Target(p50=0.600)),
    "B2": (Target(p50=1.2), Target(p50=0.345)),
    "S3": (Target(p50=0.120, raw_ratio=1.4), Target(p50=0.060, raw_ratio=1.4)),
    "S4": (Target(p50=0.220), Target(p50=0.095)),
    "S8RESUME": (Target(p50=0.020), Target(p50=0.010)),
    "A3": (Target(p50=0.040), Target(p50=0.005)),
    "A4": (Target(p50=0.250), Target(p50=0.120)),
    "E1": (Target(p50=0.003), Target(p50=0.0008)),
    "E2": (Target(most=3.0), Target(most=0.5)),
    "E3": (Target(least=4.5), Target(least=10.0)),
    "E5": (Target(p50=0.300), Target(p50=0.060)),
    "E6UP": (Target(p50=0.040), Target(p50=0.010)),
    "E6DOWN": (Target(p50=0.040), Target(p50=0.010)),
    "M1": (Target(p50=25.0 * MIB), Target(p50=12.0 * MIB)),
    "C1": (Target(p50=0.8), Target(p50=0.35)),
}
TARGETS: dict[str, dict[str, Target]] = {
    accelerator: _SAME | {ident: pair[index] for ident, pair in _TCG_AND_KVM.items()}
    for index, accelerator in enumerate(("tcg", "kvm"))
}
AMONG_LIVE = {"A1": Target(p99=0.010)}
"""For each point of a curve, by the metric: what it must keep however many VMs live beside it."""
PENDING = {
    "S2": "snapshot list, 1,000 snapshots",
    "S5": "live snapshot of a working VM",
    "S6": "fork of a working VM",
    "S7": "rollback in place",
}
"""Figures of features that do not exist yet: reported as that, never as a number."""


def target_of(figure: Figure) -> Target | None:
    """Return what a figure should reach on its accelerator, or None where nothing was set."""
    if figure.live is not None:
        return AMONG_LIVE.get(figure.metric)
    return TARGETS.get(figure.accelerator, {}).get(figure.id)


def judge(figure: Figure) -> tuple[Verdict, str]:
    """Return whether the figure keeps its target on its accelerator, and by what it misses it."""
    if (target := target_of(figure)) is None:
        return "no target", ""
    missed = target.missed_by(figure)
    return ("missed", "; ".join(missed)) if missed else ("met", "")
