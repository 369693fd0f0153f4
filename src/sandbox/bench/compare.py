"""What got worse since an earlier run, with confidence."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.bench.figure import Figure, bootstrap_ratio, percentile

MORE_IS_BETTER = frozenset({"per second"})


@dataclass(frozen=True, slots=True)
class Change:
    """One figure now over then: above 1 is worse, whatever its unit."""

    id: str
    ratio: float
    low: float
    high: float
    """The 95 % bootstrap interval of the ratio."""
    divisor: str = ""
    """What each run's figure was divided by before the two were compared; empty: nothing."""
    is_decisive: bool = True
    """Whether a gate goes by it: not where the same figure is also compared after a division."""

    def is_worse(self, tolerance: float = 0.0) -> bool:
        """Whether it is worse by more than `tolerance`, with confidence: the whole interval says so."""
        return self.low > 1 + tolerance

    def __str__(self) -> str:
        verdict = "worse" if self.is_worse() else "better" if self.high < 1 else "no difference seen"
        by = f", divided by {self.divisor}" if self.divisor else ""
        return f"{self.id:<9}{self.ratio:6.2f} × ({self.low:.2f} to {self.high:.2f})  {verdict}{by}"


def compare(figures: list[Figure], before: dict[str, Figure]) -> list[Change]:
    """Return the change of each figure that both runs have.

    Where both have measured a floor or another reference, too, a second change follows, of the figures divided by them.
    That one holds between machines and between a quiet hour and a busy one, and is the decisive one.
    """
    changes = []
    for now in figures:
        if (then := before.get(now.id)) is None:
            continue
        has_divisor = bool(now.divisor_samples and then.divisor_samples and now.divisor == then.divisor)
        changes.append(_change(now, [now.samples], [then.samples], "", is_decisive=not has_divisor))
        if has_divisor:
            above, below = [now.samples, then.divisor_samples], [then.samples, now.divisor_samples]
            changes.append(_change(now, above, below, now.divisor, is_decisive=True))
    return changes


def _change(
    figure: Figure, above: list[list[float]], below: list[list[float]], divisor: str, *, is_decisive: bool
) -> Change:
    if figure.unit in MORE_IS_BETTER:
        above, below = below, above
    ratio = 1.0
    for one, other in zip(above, below, strict=True):
        ratio *= percentile(one, 50) / percentile(other, 50)
    return Change(figure.id, ratio, *bootstrap_ratio(above, below), divisor, is_decisive)
