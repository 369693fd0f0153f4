"""What got slower since an earlier run on the same machine, with confidence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.bench.figure import Figure, bootstrap_ratio
from sandbox.errors import ConfigError

MORE_IS_BETTER = frozenset({"per second"})


@dataclass(frozen=True, slots=True)
class Change:
    """One figure now over then: above 1 is worse, whatever its unit."""

    id: str
    ratio: float
    low: float
    high: float
    """The 95 % bootstrap interval of the ratio."""

    def is_worse(self, tolerance: float = 0.0) -> bool:
        """Whether it is worse by more than `tolerance`, with confidence: the whole interval says so."""
        return self.low > 1 + tolerance

    def __str__(self) -> str:
        verdict = "worse" if self.is_worse() else "better" if self.high < 1 else "no difference seen"
        return f"{self.id:<9}{self.ratio:6.2f} × ({self.low:.2f} to {self.high:.2f})  {verdict}"


def load_samples(path: Path) -> dict[str, list[float]]:
    """Return the samples by figure of a document that `sandbox bench --json` printed."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        return {figure["id"]: [float(sample) for sample in figure["samples"]] for figure in document["figures"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no document of `sandbox bench --json`: {error}") from error


def compare(figures: list[Figure], before: dict[str, list[float]]) -> list[Change]:
    """Return the change of each figure that both runs have."""
    changes = []
    for figure in figures:
        then = before.get(figure.id)
        if not then:
            continue
        ours, others = (then, figure.samples) if figure.unit in MORE_IS_BETTER else (figure.samples, then)
        low, high = bootstrap_ratio(ours, others)
        changes.append(Change(figure.id, _median_ratio(ours, others), low, high))
    return changes


def _median_ratio(ours: list[float], others: list[float]) -> float:
    return sorted(ours)[len(ours) // 2] / sorted(others)[len(others) // 2]
