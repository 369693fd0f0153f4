"""One measured figure: its samples, where its clock starts and stops, and what the samples say."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def percentile(samples: list[float], percent: float) -> float:
    """Return the percentile by linear interpolation between the closest ranks."""
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    low, high = math.floor(position), math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def bootstrap_ratio(
    above: Sequence[list[float]], below: Sequence[list[float]], rounds: int = 2000
) -> tuple[float, float]:
    """Return the 95 % interval of the product of some medians over that of others, by resampling with a fixed seed."""
    draw = random.Random(1)  # noqa: S311 - statistics, not secrets

    def product(groups: Sequence[list[float]]) -> float:
        return math.prod(statistics.median(draw.choices(group, k=len(group))) for group in groups)

    ratios = [product(above) / product(below) for _ in range(rounds)]
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
    reference: str = ""
    """What `reference_samples` measure, where there is no floor."""
    reference_samples: list[float] = field(default_factory=list)
    """Work that never changes, measured in the same run: what the figure is divided by to compare it with another run.

    A slower or busier machine makes both worse, a change of ours only `samples`. In the figure's own unit.
    """
    isolates: str = ""
    """For one way to run code among others: what it keeps apart from the host."""

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Figure:
        """Return the figure that `as_dict` described. Raises `KeyError`, `TypeError` or `ValueError` for others."""
        numbers = {
            name: [float(sample) for sample in document.get(name, [])]
            for name in ("samples", "raw_samples", "reference_samples")
        }
        if not numbers["samples"]:
            raise ValueError(f"figure {document['id']!r} has no samples")
        names = {name: str(document[name]) for name in ("id", "name", "boundary", "unit", "accelerator")}
        return cls(**names, **numbers, reference=str(document.get("reference", "")))  # type: ignore[arg-type]

    @property
    def metric(self) -> str:
        """The id without the number of live VMs: A1 for A1@50."""
        return self.id.partition("@")[0]

    @property
    def live(self) -> int | None:
        """How many idle VMs lived while it was taken, where the figure is one point of a curve."""
        number = self.id.partition("@")[2]
        return int(number) if number else None

    @property
    def divisor(self) -> str:
        """What the figure is divided by when it is compared with another run's; empty: nothing was measured."""
        return "its floor" if self.raw_samples else self.reference

    @property
    def divisor_samples(self) -> list[float]:
        return self.raw_samples or self.reference_samples

    def show(self, value: float) -> str:
        """Return a value in the figure's unit, as people read it."""
        if self.unit == "bytes":
            return f"{value / 1024:.0f} KiB" if abs(value) < 10 * 1024 * 1024 else f"{value / 1024 / 1024:.1f} MiB"
        if self.unit == "ratio":
            return f"{value:.3g}"
        if self.unit == "per second":
            return f"{value:.3g} /s"
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.2f} s"

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
        return bootstrap_ratio([self.samples], [self.raw_samples]) if self.raw_samples else None

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
        if self.reference_samples:
            document |= {"reference": self.reference, "reference_samples": self.reference_samples}
        if self.live is not None:
            document["live_vms"] = self.live
        if self.isolates:
            document["isolates"] = self.isolates
        return document
