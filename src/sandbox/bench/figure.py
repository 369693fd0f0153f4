"""One measured figure: its samples, where its clock starts and stops, and what the samples say."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass, field


def percentile(samples: list[float], percent: float) -> float:
    """Return the percentile by linear interpolation between the closest ranks."""
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    low, high = math.floor(position), math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def bootstrap_ratio(ours: list[float], others: list[float], rounds: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of the ratio of two medians, by resampling both with a fixed seed."""
    draw = random.Random(1)  # noqa: S311 - statistics, not secrets
    ratios = [
        statistics.median(draw.choices(ours, k=len(ours))) / statistics.median(draw.choices(others, k=len(others)))
        for _ in range(rounds)
    ]
    return percentile(ratios, 2.5), percentile(ratios, 97.5)


@dataclass
class Figure:
    """Samples of one metric, all taken from real virtual machines."""

    id: str
    name: str
    boundary: str
    unit: str
    accelerator: str
    samples: list[float] = field(default_factory=list)
    raw_samples: list[float] = field(default_factory=list)
    """The floor: the same work done by a minimal driver of QEMU, taken in turn with `samples`."""

    @property
    def p50(self) -> float:
        return percentile(self.samples, 50)

    @property
    def p99(self) -> float:
        return percentile(self.samples, 99)

    @property
    def cv(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        mean = statistics.fmean(self.samples)
        return statistics.stdev(self.samples) / mean if len(self.samples) > 1 and mean else 0.0

    @property
    def raw_ratio(self) -> float | None:
        """Median over the floor's median, or None where no floor was measured."""
        return self.p50 / percentile(self.raw_samples, 50) if self.raw_samples else None

    @property
    def raw_interval(self) -> tuple[float, float] | None:
        """Bootstrap interval of the ratio to the floor, 95 %."""
        return bootstrap_ratio(self.samples, self.raw_samples) if self.raw_samples else None

    def as_dict(self) -> dict[str, object]:
        document: dict[str, object] = {
            "id": self.id,
            "name": self.name,
            "boundary": self.boundary,
            "unit": self.unit,
            "n": len(self.samples),
            "p50": self.p50,
            "p95": percentile(self.samples, 95),
            "p99": percentile(self.samples, 99),
            "cv": self.cv,
            "samples": self.samples,
            "accelerator": self.accelerator,
        }
        if self.raw_samples:
            document |= {"raw_ratio": self.raw_ratio, "raw_samples": self.raw_samples}
            document["raw_ratio_interval"] = self.raw_interval
        return document
