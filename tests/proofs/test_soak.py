"""A short soak with every kind of fault in it, and the proof that its verdict would tell."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from sandbox.template.template import Template
from tests.soak.evidence import Evidence, Process
from tests.soak.sample import ALLOWED_MEMORY, Sample, leaks
from tests.soak.soak import soak

CYCLES = int(os.environ.get("SANDBOX_SOAK_CYCLES", "30"))
SEED = 2


@pytest.mark.timeout(120 + 5 * CYCLES)
async def test_cycles_with_faults_leave_nothing(template: Template, capsys: pytest.CaptureFixture[str]) -> None:
    """Every lease is accounted for, every answer is right, and the process holds no more than before."""
    evidence = Evidence(CYCLES, SEED)
    await soak(evidence, None, template)
    with capsys.disabled():
        print(f"\nsoak: N = {evidence.account.cycles} cycles, seed {SEED}, {evidence.pool}")  # noqa: T201 - a figure
    assert evidence.verdict() == []
    assert evidence.pool["claimed"] == evidence.pool["released"] + evidence.pool["lost"]


def _samples(**grows: int) -> list[Sample]:
    noise = random.Random(1)
    names = [name for name in Sample.__dataclass_fields__ if name != "cycle"]
    return [
        Sample(cycle=10 * at, **{name: 1000 + at * grows.get(name, 0) + noise.randrange(3) for name in names})
        for at in range(60)
    ]


@pytest.mark.parametrize("name", [name for name in Sample.__dataclass_fields__ if name != "cycle"])
def test_whatever_grows_is_told(name: str) -> None:
    """The control: one more of anything in each batch is a leak, half a MiB of memory; noise alone is none."""
    assert leaks(_samples()) == []
    (line,) = leaks(_samples(**{name: 500 if name in ALLOWED_MEMORY else 1}))
    assert name in line


def test_interrupted_soak_goes_on_where_it_was(tmp_path: Path) -> None:
    """Evidence that was read back is the evidence that was written, but for the samples that are thinned out."""
    evidence = Evidence(100, 7, processes=[Process({"cores": 2}, _samples()[:30], 1.0)], pool={"claimed": 3})
    evidence.account.cycles, evidence.account.wrong = 12, ["cycle 3: wrong"]
    evidence.save(tmp_path / "soak.json")
    again = Evidence.load(tmp_path / "soak.json")
    assert again == evidence
    assert not again.is_complete
    assert again.verdict() == ["cycle 3: wrong"]
