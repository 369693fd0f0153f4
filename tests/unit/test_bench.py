"""What a benchmark's samples are made of: verdicts, comparisons, the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sandbox.bench.compare import compare
from sandbox.bench.figure import Figure, bootstrap_ratio
from sandbox.bench.overview import overview
from sandbox.bench.report import html
from sandbox.bench.run import Run
from sandbox.bench.scaling import METRICS
from sandbox.bench.suite import FIGURES
from sandbox.bench.targets import AMONG_LIVE, PENDING, TARGETS, judge
from sandbox.bench.traces import TRACES, explaining
from sandbox.cli.bench import _wanted
from sandbox.errors import ConfigError
from sandbox.trace.span import Span


def _figure(ident: str, *samples: float, unit: str = "seconds", raw: tuple[float, ...] = ()) -> Figure:
    return Figure(ident, "name", "boundary", unit, "tcg", list(samples), list(raw))


def _run(
    figures: list[Figure],
    surroundings: dict[str, object] | None = None,
    pending: dict[str, str] | None = None,
    notes: tuple[str, ...] = (),
) -> Run:
    return Run({figure.id: figure for figure in figures}, surroundings or {}, pending or {}, notes)


def test_every_target_belongs_to_a_figure_and_none_is_pending_too() -> None:
    """A bound that no figure reports would never be missed."""
    for targets in TARGETS.values():
        assert set(targets) <= set(FIGURES) | {"A1FLAT"}
    assert set(AMONG_LIVE) <= set(METRICS) <= set(FIGURES)
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
        (_figure("A1FLAT", 0.9, 1.9, 2.1), "met"),
        (_figure("A1FLAT", 0.9, 2.1, 2.1), "missed"),
        (_figure("A1@400", *[0.002] * 50), "met"),
        (_figure("A1@400", *[0.002] * 48, 0.02, 0.02), "missed"),
        (_figure("S3@400", 1000.0), "no target"),
    ],
)
def test_a_figure_is_judged_by_each_of_its_bounds(figure: Figure, verdict: str) -> None:
    """By median, tail, ratio to the floor, or where more is better."""
    assert judge(figure)[0] == verdict
    assert bool(judge(figure)[1]) == (verdict == "missed")


def test_what_got_worse_is_told_with_confidence() -> None:
    """Twice as slow is worse, noise is not, and of a rate less is worse."""
    noise = [1 + 0.01 * (index % 7) for index in range(40)]
    before = {ident: _figure(ident, *noise) for ident in ("S3", "S4", "E3")}
    figures = [_figure("S3", *(2 * sample for sample in noise)), _figure("S4", *reversed(noise))]
    slower, same, rate = compare([*figures, _figure("E3", *(s / 2 for s in noise), unit="per second")], before)
    assert slower.is_worse(0.1)
    assert not same.is_worse()
    assert "no difference" in str(same)
    assert rate.is_worse(0.1)
    low, high = bootstrap_ratio([noise], [noise])
    assert low <= 1 <= high


def test_an_older_document_is_read_and_anything_else_refused(tmp_path: Path) -> None:
    """The document of `--json` is what `--compare` takes, with all that figures are divided by."""
    path = tmp_path / "old.json"
    claims = _figure("A1", 1.0, 2.0)
    claims.reference, claims.reference_samples = "a loop", [3.0]
    figures = [claims, _figure("S3", 1.0, raw=(0.5,)), _figure("E3@5", 4.0, unit="per second")]
    path.write_text(json.dumps({"environment": {}, "pending": {}, "figures": [figure.as_dict() for figure in figures]}))
    assert list(Run.load(path).figures.values()) == figures
    empty = json.dumps({"figures": [figures[1].as_dict() | {"samples": []}]})
    for content in ("", "[]", '{"figures": [{"id": 1}]}', '{"figures": [1]}', empty):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"old\.json"):
            Run.load(path)


def test_the_overview_has_a_line_for_each_time_and_its_target() -> None:
    """Other units and single samples are left out; what lies off the scale is drawn at its end."""
    text = overview([_figure("S3", 0.1, 0.2), _figure("B1", 50.0, 60.0), _figure("C2", 1.0, 2.0, unit="bytes")])
    assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert text.count("<circle") == 2
    assert text.count('stroke="#a11"') == 2
    assert all(0 < float(x) < 860 for x in re.findall(r'cx="([^"]+)"', text))


def test_the_report_is_one_file_and_escapes_what_it_shows() -> None:
    """No other file, no script; what the host is called cannot become markup."""
    figures = [_figure("S3", 0.1, 0.2, raw=(0.1, 0.1)), _figure("C2", 1e6, 2e6, unit="bytes")]
    text = html(_run(figures, {"machine": "<b>&"}, PENDING))
    assert "&lt;b&gt;&amp;" in text
    assert "<script" not in text
    assert "src=" not in text
    assert text.count("<svg") == 2
    for pending in PENDING:
        assert f"<td>{pending}<td>" in text


def test_traces_of_a_run_are_kept_and_drawn_again_alike(tmp_path: Path) -> None:
    """Whoever reads the document draws the same picture; nothing in a name is markup, and short stages share a line."""
    spans = [Span("boot", 7.0, 9.0), Span("<kernel>", 7.5, 8.5, "boot")]
    spans += [Span(f"line {index}", 7.5 + index / 10, 7.5 + index / 10 + 1e-4, "boot") for index in range(1, 4)]
    measured = Run({}, {}, {}, traces={"cold boot": spans})
    path = tmp_path / "run.json"
    path.write_text(json.dumps(measured.as_dict()))
    text = html(Run.load(path))
    assert text == html(measured)
    assert text.count("<rect") == len(spans)
    assert "&lt;kernel&gt;" in text
    assert "3 short stages" in text
    assert "Where the time goes" not in html(_run([]))


@pytest.mark.parametrize(
    "records",
    [
        '{"a": [{"name": "x", "track": "moon", "begin": 0, "end": 1}]}',
        '{"a": [{"name": "x", "track": "host", "begin": 1, "end": 0}]}',
        '{"a": [{"name": "x", "track": "host", "begin": 0, "end": NaN}]}',
        '{"a": [{"name": "x", "track": ["host"], "begin": 0, "end": 1}]}',
        '{"a": [{}]}',
        '{"a": 1}',
        "[]",
    ],
)
def test_document_with_traces_that_are_none_is_refused(tmp_path: Path, records: str) -> None:
    """A span has a known track and an end that is not before its begin."""
    path = tmp_path / "run.json"
    path.write_text(f'{{"environment": {{}}, "pending": {{}}, "figures": [], "traces": {records}}}')
    with pytest.raises(ConfigError, match=r"run\.json"):
        Run.load(path)


def test_each_trace_explains_figures_that_there_are() -> None:
    """It is taken when one of them was measured, and not for the point of a curve."""
    assert {ident for trace in TRACES.values() for ident in trace.figures} <= set(FIGURES)
    assert explaining(["A1", "S3"]) == ["restore"]
    assert explaining(["A3"]) == explaining(["S4"]) == ["restore and first command"]
    assert explaining(["S3@5", "A1"]) == []


def test_points_of_a_curve_are_drawn_as_one_picture() -> None:
    """One drawing for a metric, a mark for each point and percentile; the notes say where the curves end."""
    points = [_figure(f"A1@{count}", 0.001, 0.002) for count in (1, 2, 50)]
    peer = _figure("P5", 0.1, 0.2)
    peer.isolates = "<nothing>"
    text = html(_run([*points, _figure("M1@1", 1e6, unit="bytes"), peer], notes=("ends before <100>",)))
    assert text.count("<svg") == 3  # A1's curve, M1's, and the peer's samples
    assert (text.count("<polyline"), text.count("<circle")) == (6, 12)
    assert "<p>ends before &lt;100&gt;</p>" in text
    assert "&lt;nothing&gt;" in text


@pytest.mark.parametrize("tail", [0.002, 0.5])
def test_every_mark_of_a_curve_lies_inside_its_picture(tail: float) -> None:
    """Also where the tail is hundreds of times the median, which then is still to be told from the bottom."""
    text = html(_run([_figure(f"A1@{count}", *[0.001] * 50, tail) for count in (1, 20, 400)]))
    marks = [(float(x), float(y)) for x, y in re.findall(r'cx="([^"]+)" cy="([^"]+)"', text)]
    assert len(marks) == 9
    assert all(0 < x < 640 and 0 < y < 196 for x, y in marks)
    assert max(y for _, y in marks) < 190


def test_figures_are_chosen_by_id_and_by_group() -> None:
    """What takes minutes must be named; what is pending is told as that."""
    assert _wanted("e6").figures == ["E6UP", "E6DOWN"]
    assert _wanted("A").figures == ["A1", "A2", "A3", "A4"]
    assert "M2" not in _wanted(None).figures
    assert _wanted("M2").figures == ["M2"]
    with pytest.raises(ConfigError, match="pending"):
        _wanted("S5")
    with pytest.raises(ConfigError, match="no such figure"):
        _wanted("Z9")


def test_curves_and_peers_are_measured_when_asked_for_and_then_alone() -> None:
    """A run without options measures neither; with curves the choice is among those that there are."""
    plain = _wanted(None)
    assert (plain.curves, plain.peers) == ([], False)
    curves = _wanted(None, scaling=True)
    assert (curves.figures, curves.curves, curves.peers) == ([], ["A1", "S3", "E3", "M1"], False)
    assert _wanted("m,a1", scaling=True).curves == ["M1", "A1"]
    with pytest.raises(ConfigError, match="there are A1, S3, E3, M1"):
        _wanted("E1", scaling=True)
    peers = _wanted(None, peers=True)
    assert (peers.figures, peers.curves, peers.peers) == ([], [], True)
    assert _wanted("S4", peers=True).figures == ["S4"]


def test_what_needs_an_image_that_was_not_built_is_pending(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is left out of its group, and who asks for it hears which command builds the image."""
    monkeypatch.setenv("SANDBOX_DATA_DIR", str(tmp_path))
    assert _wanted("B").figures == ["B1", "B3"]
    with pytest.raises(ConfigError, match="image build --kernel minimal"):
        _wanted("B2")
