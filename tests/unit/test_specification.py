"""Every promise of SPECIFICATION.md is kept in the recorded runs that it names, and is a target of the benchmark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox.bench.run import Run
from sandbox.bench.targets import judge, target_of
from sandbox.cli.figures import print_figures

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([A-Z0-9]+) \|.*\| \[[^]]+\]\((\S+\.json)\) \|$", re.MULTILINE)


def promises() -> list[tuple[str, str]]:
    """Return id and evidence of every row."""
    return ROW.findall((ROOT / "SPECIFICATION.md").read_text())


def test_there_are_promises() -> None:
    """The table is found: else nothing below would be asked."""
    assert len(promises()) >= 10
    assert len(dict(promises())) == len(promises())


@pytest.mark.parametrize(("ident", "evidence"), promises(), ids=dict(promises()))
def test_promise_is_kept_in_its_evidence(ident: str, evidence: str) -> None:
    """The samples are judged anew, by the same targets that `sandbox bench` prints; the run was of a quiet machine."""
    run = Run.load(ROOT / evidence)
    figure = run.figures[ident]
    assert target_of(figure) is not None
    assert judge(figure) == ("met", "")
    assert run.surroundings["is_busy"] is False


def test_the_readme_shows_what_the_recorded_run_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Each row of its table is a line of `sandbox bench --recorded … --markdown`."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if re.match(r"\| [A-Z]+\d\w* \| ", line)]
    assert len(rows) >= 5
    print_figures(Run.load(ROOT / "docs" / "evidence" / "bench-tcg.json"), "markdown")
    assert set(rows) <= set(capsys.readouterr().out.splitlines())
