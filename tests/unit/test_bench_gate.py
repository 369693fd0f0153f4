"""The gate's judgement, on samples with the spread of real ones."""

from __future__ import annotations

import random

import pytest

from sandbox.bench.compare import compare
from sandbox.bench.figure import Figure
from sandbox.bench.gate import TOLERANCE, TOLERANCE_ELSEWHERE, incomparable, regressions, tolerance

# What each is divided by, its unit, its size, that of the divisor, samples, and the spread of both in real runs.
SHAPES = {
    "S3": ("floor", "seconds", 0.15, 0.12, 40, 0.12, 0.12),
    "A1": ("a loop", "seconds", 7e-5, 4e-4, 100, 0.35, 0.15),
    "E3": ("raw lines", "per second", 4.5, 9.0, 5, 0.05, 0.05),
    "M1": ("", "bytes", 2.4e7, 0.0, 20, 0.05, 0.0),
}


def _measured(ident: str, seed: int, *, work: float = 1.0, machine: float = 1.0) -> Figure:
    """Return a run whose own work takes `work` times as long, on a machine where everything takes `machine` times."""
    draw = random.Random(f"{ident} {seed}")
    divisor, unit, size, divisor_size, count, spread, divisor_spread = SHAPES[ident]

    def samples(middle: float, slower: float, count: int, spread: float) -> list[float]:
        middle = middle / slower if unit == "per second" else middle * slower
        return [middle * max(0.3, draw.gauss(1, spread)) for _ in range(count)]

    slower = work if unit == "bytes" else work * machine  # memory does not depend on the processor
    figure = Figure(ident, "name", "boundary", unit, "tcg", samples(size, slower, count, spread))
    if divisor == "floor":
        figure.raw_samples = samples(divisor_size, machine, count, divisor_spread)
    elif divisor:
        figure.reference, figure.reference_samples = (
            divisor,
            samples(divisor_size, machine, max(6, count), divisor_spread),
        )
    return figure


def _fails(now: Figure, then: Figure) -> bool:
    return bool(regressions(compare([now], {then.id: then})))


@pytest.mark.parametrize("ident", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_a_change_that_costs_half_as_much_again_fails_the_gate(ident: str, seed: int) -> None:
    """Each of the four figures is guarded."""
    assert _fails(_measured(ident, seed, work=1.5), _measured(ident, seed + 100))


def test_another_machine_is_given_more() -> None:
    """What is a loss on one machine may be the other machine; half as much again still fails."""
    here, there = {"machine": "a", "cores": 2}, {"machine": "b", "cores": 2}
    assert tolerance(here, dict(here)) == TOLERANCE
    assert tolerance(here, there) == tolerance(here, {}) == TOLERANCE_ELSEWHERE
    then = _measured("M1", 100)
    worse, much_worse = (compare([_measured("M1", 1, work=work)], {"M1": then}) for work in (1.18, 1.5))
    assert regressions(worse)
    assert not regressions(worse, TOLERANCE_ELSEWHERE)
    assert regressions(much_worse, TOLERANCE_ELSEWHERE)


@pytest.mark.parametrize("ident", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_noise_and_a_slower_machine_do_not_fail_the_gate(ident: str, seed: int) -> None:
    """Neither another draw of the same, nor a loss within the tolerance, nor a machine of half the speed."""
    then = _measured(ident, seed + 100)
    assert not _fails(_measured(ident, seed), then)
    assert not _fails(_measured(ident, seed, work=1 + TOLERANCE / 2), then)
    assert not _fails(_measured(ident, seed, machine=2.0), then)
    assert not _fails(_measured(ident, seed, machine=0.5), then)


def test_a_better_figure_never_fails_the_gate() -> None:
    """More is better for a rate, less for all others."""
    for ident in SHAPES:
        assert not _fails(_measured(ident, 1, work=0.5), _measured(ident, 2))


def test_the_same_loss_without_division_would_blame_a_slow_machine() -> None:
    """The control: what makes the gate pass on a slow machine is the division, and it is told in both forms."""
    then, now = _measured("A1", 1), _measured("A1", 2, machine=2.0)
    plain, divided = compare([now], {"A1": then})
    assert plain.is_worse(TOLERANCE)
    assert not plain.is_decisive
    assert not divided.is_worse()
    assert divided.is_decisive
    assert "divided by a loop" in str(divided)
    now.reference_samples = []
    assert _fails(now, then)


def test_a_figure_that_cannot_be_judged_is_named() -> None:
    """Not in the earlier run, of another accelerator, or without what it was divided by."""
    then = _measured("S3", 1)
    assert incomparable([_measured("S3", 2)], {"S3": then}) == []
    assert "no such figure" in incomparable([_measured("A1", 1)], {"S3": then})[0]
    other = _measured("S3", 2)
    other.accelerator = "kvm"
    assert "was of tcg" in incomparable([other], {"S3": then})[0]
    other = _measured("S3", 2)
    other.raw_samples = []
    assert "did not measure its floor" in incomparable([other], {"S3": then})[0]
