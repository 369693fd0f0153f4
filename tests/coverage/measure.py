"""Runs the tests and measures the branches that they take in `src`, and inside VMs in `guest_agent`.

`python -m tests.coverage.measure`; see `scripts/test --coverage`. First the tests of what programs meet in a guest run
with an agent that is traced; see `tracer.py`. Then the whole suite runs, traced on the host.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import coverage
from coverage.exceptions import CoverageWarning

from sandbox.paths import Paths
from tests.coverage.guest import DATA, ROOT, SOURCE, write_traced

EVIDENCE = ROOT / "docs/evidence/coverage.json"
PARTS = ("src", "guest_agent")
WANTED = 90.0
"""Per cent of the branches."""
SLACK = 1.0
"""Points of per cent that a part may be below what was recorded: timing decides about a few branches."""
OF_THE_HOST = {"cli", "confinement", "inventory", "metrics", "observe", "shell", "sync", "template", "top", "trace"}
"""First words of tests in `tests/vm` that have the guest do nothing that others do not."""
OF_GUESTS = ("tests/adversity/test_outcomes.py",)
"""Not those of hostile programs and of guests that end: a guest that is traced is slower than their limits of time."""
TOO_SLOW = ("tests/vm/test_watch.py::test_changes_that_were_too_many_are_told_as_overflow",)
"""Others of which the same is true."""


def main() -> int:
    """Return 0 if all tests passed and neither part is worse than recorded."""
    parser = argparse.ArgumentParser(prog="scripts/test --coverage", description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"write {EVIDENCE.relative_to(ROOT)}, compare nothing")
    parser.add_argument("--data", type=Path, help="keep what the processes noted in this directory (default: nowhere)")
    parser.add_argument("--report-only", action="store_true", help="run no tests: report what is in --data")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sandbox-coverage-") as directory:
        data = (options.data or Path(directory)).absolute()
        if not options.report_only and not _run_tests(data):
            _say("coverage: not reported, because tests failed")
            return 1
        document = {
            "measured": time.strftime("%Y-%m-%d", time.gmtime()),
            "python": platform.python_version(),
            "seconds": None if options.report_only else round(time.monotonic() - began),
            "src": _report(data / "src", [], ["sandbox"]),
            "guest_agent": _report(data / "guest_agent", [str(SOURCE)], []),
        }
    return _record(document) if options.record else _compare(document)


def _run_tests(data: Path) -> bool:
    """Run all; return whether they passed. The whole suite comes last, so that its summary is the last one in a log."""
    for part in PARTS:
        (data / part).mkdir(parents=True, exist_ok=True)
    data.chmod(0o755)
    (data / "src").chmod(0o1777)  # some tests run the command line as another user
    inside = _run_traced_guests(data / "guest_agent/noted")
    command = [sys.executable, "-m", "coverage", "run", f"--data-file={data / 'src/noted'}", "-m", "pytest"]
    outside = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    return inside and outside


def _guest_tests() -> list[str]:
    found = sorted((ROOT / "tests/vm").glob("test_*.py"))
    return [*(str(path) for path in found if path.stem.split("_")[1] not in OF_THE_HOST), *OF_GUESTS]


def _run_traced_guests(noted: Path) -> bool:
    """Run tests in VMs whose agent is traced, with an image and a template of their own; every line is indented."""
    usual = Paths.default().data
    with tempfile.TemporaryDirectory(prefix="coverage-", dir=usual) as directory:
        Path(directory).chmod(0o755)
        shutil.copytree(usual / "images/layers", Path(directory, "images/layers"), copy_function=os.link)
        write_traced(Path(directory, "agent"))
        own = {"SANDBOX_DATA_DIR": directory, "SANDBOX_GUEST_AGENT": f"{directory}/agent", DATA: str(noted)}
        command = [sys.executable, "-m", "pytest", "-p", "tests.coverage.guest", *_guest_tests()]
        command += [f"--deselect={test}" for test in TOO_SLOW]
        with subprocess.Popen(
            command, cwd=ROOT, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                _say(f"  | {line.rstrip()}")
        return process.returncode == 0


def _report(data: Path, source: list[str], packages: list[str]) -> dict[str, Any]:
    """Return the branches of one part, with what was not taken in each file."""
    noted = coverage.Coverage(
        str(data / "noted"), config_file=str(ROOT / "pyproject.toml"), source=source, source_pkgs=packages
    )
    with warnings.catch_warnings(action="ignore", category=CoverageWarning):  # files of processes that were killed
        noted.combine([str(data)], keep=True)
    file = data / "report.json"
    noted.json_report(outfile=str(file))
    report = json.loads(file.read_text())
    totals = report["totals"]
    return {
        "branches": totals["num_branches"],
        "covered": totals["covered_branches"],
        "percent": round(100 * totals["covered_branches"] / totals["num_branches"], 2),
        "files": {
            name: {
                "branches": file["summary"]["num_branches"],
                "covered": file["summary"]["covered_branches"],
                "missing_lines": file["missing_lines"],
                "missing_branches": [f"{line}->{following}" for line, following in file["missing_branches"]],
            }
            for name, file in sorted(report["files"].items())
        },
    }


def _record(document: dict[str, Any]) -> int:
    _print(document)
    EVIDENCE.write_text(_text(document))
    _say(f"recorded {EVIDENCE.relative_to(ROOT)}")
    return 0


def _text(document: dict[str, Any]) -> str:
    """Return it as JSON with one line for each file."""
    parts = []
    for name in PARTS:
        part = dict(document[name])
        files = part.pop("files")
        lines = ",\n".join(f"   {json.dumps(path)}: {json.dumps(file)}" for path, file in files.items())
        parts.append(f' "{name}": {json.dumps(part)[:-1]}, "files": {{\n{lines}\n }}}}')
    head = {key: value for key, value in document.items() if key not in PARTS}
    return json.dumps(head)[:-1] + ",\n" + ",\n".join(parts) + "\n}\n"


def is_worse(now: float, recorded: float) -> bool:
    """Return whether a percentage is below the recorded one by more than chance."""
    return now < recorded - SLACK


def _compare(document: dict[str, Any]) -> int:
    _print(document)
    if not EVIDENCE.exists():
        _say(f"there is no {EVIDENCE.relative_to(ROOT)} to compare with: make it with --record")
        return 1
    recorded = json.loads(EVIDENCE.read_text())
    worse = [name for name in PARTS if is_worse(document[name]["percent"], recorded[name]["percent"])]
    for name in worse:
        _say(f"{name} had {recorded[name]['percent']} %: write tests for what is new, or record with --record")
    return 1 if worse else 0


def _print(document: dict[str, Any]) -> None:
    for name in PARTS:
        part = document[name]
        for path, file in part["files"].items():
            if file["branches"] > file["covered"] or file["missing_lines"]:
                _say(f"{path:55} {file['covered']:4} of {file['branches']:4}  {_spans(file['missing_lines'])}")
        _say(
            f"{name}: {part['covered']} of {part['branches']} branches, {part['percent']} %; {WANTED:.0f} % are wanted"
        )


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command


def _spans(lines: list[int]) -> str:
    """Return lines as `3-5, 9`."""
    spans: list[list[int]] = []
    for line in lines:
        if spans and spans[-1][1] == line - 1:
            spans[-1][1] = line
        else:
            spans.append([line, line])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)


if __name__ == "__main__":
    sys.exit(main())
