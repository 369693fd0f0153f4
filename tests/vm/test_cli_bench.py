"""`sandbox bench` with real VMs: curves, other ways to run code, comparisons."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import run_sync

from sandbox.bench.suite import Suite
from sandbox.bench.traces import TRACES, Explanation, take_traces
from sandbox.cold_boot import ColdBoot
from sandbox.config import HostConfig
from sandbox.hypervisor.admission import Admission
from sandbox.image.store import ImageStore
from sandbox.template.template import Template

pytestmark = pytest.mark.usefixtures("built")
SANDBOX = [sys.executable, "-m", "sandbox"]
SECONDS = 170


@pytest.fixture(scope="module")
def built() -> None:
    """Image and template exist before the first command."""
    subprocess.run([*SANDBOX, "setup"], check=True, capture_output=True, timeout=300)


def bench(*arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Return the exit code, the document, and what was said beside it."""
    command = [*SANDBOX, "bench", "--json", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **environment}, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_each_curve_has_its_points_and_a_verdict_on_claims(tmp_path: Path) -> None:
    """Every metric at 1, 2 and 5 idle VMs, with samples, and the growth of a claim; drawn in the report."""
    report = tmp_path / "report.html"
    status, document, _ = bench("--scaling", "--up-to", "5", "-n", "2", "--html", str(report))
    figures = {figure["id"]: figure for figure in document["figures"]}
    points = {f"{metric}@{count}" for metric in ("A1", "S3", "E3", "M1") for count in (1, 2, 5)}
    assert (status, set(figures), document["notes"]) == (0, points | {"A1FLAT"}, [])
    for ident in points:
        count = int(ident.partition("@")[2])
        assert figures[ident]["live_vms"] == count
        assert figures[ident]["n"] == (count if ident.startswith("M1") else 2)
        assert 0 < figures[ident]["p50"] <= figures[ident]["p95"] <= figures[ident]["p99"]
    assert figures["M1@5"]["p50"] < figures["M1@1"]["p50"], "the template's pages are not shared"
    assert figures["A1FLAT"]["verdict"] in ("met", "missed")
    assert report.read_text().count("<polyline") == 12


def test_a_curve_ends_where_the_host_holds_no_more(tmp_path: Path) -> None:
    """What was measured before is printed, with a line that says where it ended and why."""
    admission = Admission(HostConfig(admission_dir=tmp_path), "0badcafe")
    room = 3 * 256
    admission.ledger.promise("others", admission.budget_mib - room, admission.budget_mib)
    try:
        status, document, said = bench(
            *("--scaling", "--only", "M1", "--up-to", "5", "-n", "2"), SANDBOX_ADMISSION_DIR=str(tmp_path)
        )
    finally:
        admission.close()
    assert status == 0
    assert [figure["id"] for figure in document["figures"]] == ["M1@1", "M1@2"]
    (note,) = document["notes"]
    assert "before 5 idle VMs" in note
    assert "may be promised on this host" in note
    assert note in said


def test_other_ways_to_run_code_are_compared_in_the_same_run() -> None:
    """Ours, a cold boot, a plain process, and whatever else is installed; the rest is named, with the reason."""
    status, document, _ = bench("--peers", "-n", "2")
    figures = {figure["id"]: figure for figure in document["figures"]}
    assert status == 0
    assert {"P1", "P2", "P3", "P4", "P5"} <= set(figures)
    assert all(figure["n"] == 2 and figure["isolates"] for figure in figures.values())
    assert figures["P5"]["isolates"] == "nothing"
    assert max(figures["P1"]["samples"]) < min(figures["P4"]["samples"]), "a warm VM is slower than a boot"
    has_note = any(note.startswith("bubblewrap: left out") for note in document["notes"])
    assert ("P6" in figures) != has_note
    assert shutil.which("bwrap") is not None or has_note


def test_report_shows_where_the_time_of_a_figure_goes(tmp_path: Path) -> None:
    """One restore stage by stage, drawn from the document as from the run; figures without a report have no trace."""
    report, again, recorded = tmp_path / "report.html", tmp_path / "again.html", tmp_path / "run.json"
    status, document, said = bench("--only", "S3", "-n", "2", "--html", str(report))
    assert (status, document["notes"], list(document["traces"])) == (0, [], ["restore"])
    assert said.index("measuring S3") < said.index("tracing: restore")
    names = [span["name"] for span in document["traces"]["restore"]]
    assert names[0] == "restore"
    assert {"build the machine", "load the device state", "wake, take HELLO and its entropy"} <= set(names)
    assert not any("destroy" in name for name in names)
    recorded.write_text(json.dumps(document))
    assert bench("--recorded", str(recorded), "--html", str(again))[:2] == (0, document)
    assert report.read_text() == again.read_text()
    assert bench("--recorded", str(recorded), "--only", "S3")[1]["traces"] == document["traces"]
    assert bench("--only", "S3", "-n", "2")[1]["traces"] == {}


async def test_trace_that_fails_is_a_note_of_the_run(template: Template) -> None:
    """The others are taken all the same, and nothing is raised."""
    suite, image = Suite(template, 2, lambda _: None), await run_sync(ImageStore(HostConfig().paths.images).ls)
    source = ColdBoot(template.host, image[0])
    source.spec = replace(source.spec, initrd=Path("/nowhere/initrd"))
    broken = Explanation(frozenset({"S3"}), lambda _: source)
    traces = await take_traces(suite, ["S3"], {"broken": broken, "restore": TRACES["restore"]})
    assert list(traces) == ["restore"]
    (note,) = suite.notes
    assert note.startswith("no trace of broken: ")
    assert "/nowhere/initrd" in note


def test_a_gate_compares_with_an_earlier_run(tmp_path: Path) -> None:
    """It passes against itself, and fails against a run that was better or that has no such figure."""
    baseline = tmp_path / "baseline.json"
    _, document, _ = bench("--only", "M1", "-n", "4")
    baseline.write_text(json.dumps(document))
    again = ("--only", "M1", "-n", "4", "--gate", "--compare", str(baseline))
    status, _, said = bench(*again)
    assert status == 0, said
    better = document["figures"][0] | {"samples": [sample / 2 for sample in document["figures"][0]["samples"]]}
    baseline.write_text(json.dumps(document | {"figures": [better]}))
    status, _, said = bench(*again)
    assert status == 1
    assert "measuring it again" in said
    assert "gate: M1: worse than before" in said
    baseline.write_text(json.dumps(document | {"figures": []}))
    status, _, said = bench(*again)
    assert status == 1
    assert "the earlier run has no such figure" in said
