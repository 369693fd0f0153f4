"""What a benchmark's samples are made of: verdicts, comparisons, the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox.bench.compare import compare, load_samples
from sandbox.bench.figure import Figure, bootstrap_ratio
from sandbox.bench.report import html
from sandbox.bench.suite import FIGURES
from sandbox.bench.targets import PENDING, TARGETS, judge
from sandbox.cli.bench import _wanted
from sandbox.errors import ConfigError


def _figure(ident: str, *samples: float, unit: str = "seconds", raw: tuple[float, ...] = ()) -> Figure:
    return Figure(ident, "name", "boundary", unit, "tcg", list(samples), list(raw))


def test_every_target_belongs_to_a_figure_and_none_is_pending_too() -> None:
    """A bound that no figure reports would never be missed."""
    for targets in TARGETS.values():
        assert set(targets) <= set(FIGURES)
    assert not set(FIGURES) & set(PENDING)


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (_figure("A1", *[0.0005] * 100), "met"),
        (_figure("A1", *[0.0005] * 90, *[0.1] * 10), "missed"),
        (_figure("S3", 0.11, 0.11, raw=(0.1, 0.1)), "met"),
        (_figure("S3", 0.11, 0.11, raw=(0.05, 0.05)), "missed"),
        (_figure("E3", 4.6, unit="per second"), "met"),
        (_figure("E3", 4.4, unit="per second"), "missed"),
        (_figure("E4", 1000.0), "no target"),
    ],
)
def test_a_figure_is_judged_by_each_of_its_bounds(figure: Figure, verdict: str) -> None:
    """By median, tail, ratio to the floor, or where more is better."""
    assert judge(figure)[0] == verdict
    assert bool(judge(figure)[1]) == (verdict == "missed")


def test_what_got_worse_is_told_with_confidence() -> None:
    """Twice as slow is worse, noise is not, and of a rate less is worse."""
    noise = [1 + 0.01 * (index % 7) for index in range(40)]
    before = {"S3": noise, "S4": noise, "E3": noise}
    figures = [_figure("S3", *(2 * sample for sample in noise)), _figure("S4", *reversed(noise))]
    slower, same, rate = compare([*figures, _figure("E3", *(s / 2 for s in noise), unit="per second")], before)
    assert slower.is_worse(0.1)
    assert not same.is_worse()
    assert "no difference" in str(same)
    assert rate.is_worse(0.1)
    low, high = bootstrap_ratio(noise, noise)
    assert low <= 1 <= high


def test_an_older_document_is_read_and_anything_else_refused(tmp_path: Path) -> None:
    """The document of `--json` is what `--compare` takes."""
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"figures": [_figure("A1", 1.0, 2.0).as_dict()]}))
    assert load_samples(path) == {"A1": [1.0, 2.0]}
    for content in ("", "[]", '{"figures": [{"id": 1}]}'):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"old\.json"):
            load_samples(path)


def test_the_report_is_one_file_and_escapes_what_it_shows() -> None:
    """No other file, no script; what the host is called cannot become markup."""
    figures = [_figure("S3", 0.1, 0.2, raw=(0.1, 0.1)), _figure("C2", 1e6, 2e6, unit="bytes")]
    text = html(figures, {"machine": "<b>&"}, PENDING)
    assert "&lt;b&gt;&amp;" in text
    assert "<script" not in text
    assert "src=" not in text
    assert text.count("<svg") == 2
    for pending in PENDING:
        assert f"<td>{pending}<td>" in text


def test_figures_are_chosen_by_id_and_by_group() -> None:
    """What takes minutes must be named; what is pending is told as that."""
    assert _wanted("e6") == ["E6UP", "E6DOWN"]
    assert _wanted("A") == ["A1", "A2", "A3", "A4"]
    assert "M2" not in _wanted(None)
    assert _wanted("M2") == ["M2"]
    with pytest.raises(ConfigError, match="pending"):
        _wanted("S5")
    with pytest.raises(ConfigError, match="no such figure"):
        _wanted("Z9")


def test_what_needs_an_image_that_was_not_built_is_pending(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is left out of its group, and who asks for it hears which command builds the image."""
    monkeypatch.setenv("SANDBOX_DATA_DIR", str(tmp_path))
    assert _wanted("B") == ["B1", "B3"]
    with pytest.raises(ConfigError, match="image build --kernel minimal"):
        _wanted("B2")
