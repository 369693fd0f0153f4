"""Whether a run is good enough: against the targets, or against an earlier run's figures."""

from __future__ import annotations

from collections.abc import Mapping

from sandbox.bench.compare import Change
from sandbox.bench.figure import Figure
from sandbox.bench.targets import judge

TOLERANCE = 0.1
"""A figure may be worse by a tenth before a change of ours is blamed."""
TOLERANCE_ELSEWHERE = 0.25
"""On another kind of machine than the earlier run's: there what a figure is divided by does not weigh the same."""
_MACHINE = ("machine", "cores")


def missed_targets(figures: list[Figure]) -> list[str]:
    """Return one line for each figure that misses its target."""
    return [f"{figure.id}: {why}" for figure in figures if (why := judge(figure)[1])]


def tolerance(now: Mapping[str, object], then: Mapping[str, object]) -> float:
    """Return what is allowed between two runs with these environments."""
    is_same = all(now.get(name) == then.get(name) for name in _MACHINE)
    return TOLERANCE if is_same else TOLERANCE_ELSEWHERE


def regressions(changes: list[Change], allowed: float = TOLERANCE) -> list[Change]:
    """Return the decisive changes of which even the lower end of the interval is worse by more than is allowed.

    Noise widens an interval and a busy machine worsens the divisor as well, so neither makes a gate fail. S3 and E3 are
    divided by restores of raw QEMU (E3 by as many lines of them), A1 by a fixed loop of Python, each taken in the same
    run as the figure. M1 is compared as it is: bytes do not depend on how busy the processors are.
    """
    return [change for change in changes if change.is_decisive and change.is_worse(allowed)]


def incomparable(figures: list[Figure], before: dict[str, Figure]) -> list[str]:
    """Return one line for each figure that the earlier run cannot judge: a gate that judges nothing never fails."""
    lines = []
    for figure in figures:
        then = before.get(figure.id)
        if then is None:
            lines.append(f"{figure.id}: the earlier run has no such figure")
        elif then.accelerator != figure.accelerator:
            lines.append(f"{figure.id}: the earlier run was of {then.accelerator}, this one is of {figure.accelerator}")
        elif then.divisor_samples and not figure.divisor_samples:
            lines.append(f"{figure.id}: this run did not measure {then.divisor}")
    return lines
