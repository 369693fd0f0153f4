"""Changes the pool and the protocol, one place at a time, and counts the changes that no test notices.

`python -m tests.mutation.mutation`; see `scripts/mutate`. The tests are those that need no VM; a mutant that only a
real VM would notice survives here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from tests.mutation.subjects import LEFT_OUT, MODEL_STEPS, SUBJECTS

TIMEOUT = 30
"""A mutant that hangs is noticed after so many seconds."""
TARGET = 0.8


class Mutant(NamedTuple):
    """One change, and whether a test failed because of it."""

    module: str
    line: int
    operator: str
    killed: bool


def main() -> int:
    """Return 0 if at least four fifths of the mutants are killed."""
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__)
    parser.add_argument("module", nargs="*", help="mutate only these files (default: all of the pool and the protocol)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="sessions at once (default: one a processor)")
    parser.add_argument("--out", type=Path, help="write what was found as JSON")
    options = parser.parse_args()
    tests = {module: subject.tests for subject in SUBJECTS for module in subject.modules}
    if unknown := set(options.module) - tests.keys():
        parser.error(f"no such subject: {', '.join(sorted(unknown))}; there are {', '.join(sorted(tests))}")
    began = time.time()
    mutants = _mutate({module: tests[module] for module in options.module or tests}, options.jobs)
    killed = sum(mutant.killed for mutant in mutants)
    _say(f"mutants: {killed} of {len(mutants)} killed, {killed / len(mutants):.1%}; at least {TARGET:.0%} are wanted")
    if options.out is not None:
        options.out.write_text(json.dumps(_document(mutants, began), indent=1) + "\n")
    return 0 if killed >= TARGET * len(mutants) else 1


def _mutate(tests: dict[str, str], jobs: int) -> list[Mutant]:
    """Run one session for each module, each in a copy of the tree."""
    trees: SimpleQueue[Path] = SimpleQueue()
    count = min(len(tests), max(1, jobs))
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(count) as executor:
        for number in range(count):
            trees.put(_copy(Path(directory) / str(number)))

        def session(module: str) -> list[Mutant]:
            tree = trees.get()
            try:
                return _session(tree, module, tests[module])
            finally:
                trees.put(tree)

        return [mutant for found in executor.map(session, tests) for mutant in found]


def _copy(tree: Path) -> Path:
    """Copy what git knows or would take, because mutants are written into the source."""
    listed = subprocess.run(["git", "ls-files", "-zco", "--exclude-standard"], check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if Path(name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, tree / name)
    return tree


def _session(tree: Path, module: str, tests: str) -> list[Mutant]:
    run = _runner(tree)
    pytest = f"{shlex.quote(sys.executable)} -m pytest -x -q -p no:cacheprovider {tests}"
    (tree / "mutation.toml").write_text(
        f'[cosmic-ray]\nmodule-path = "{module}"\ntimeout = {TIMEOUT}\nexcluded-modules = []\n'
        f'test-command = {json.dumps(pytest)}\n[cosmic-ray.distributor]\nname = "local"\n'
        f"[cosmic-ray.filters.operators-filter]\nexclude-operators = {json.dumps(LEFT_OUT)}\n"
    )
    (tree / "mutation.sqlite").unlink(missing_ok=True)
    run("cosmic-ray", "init", "mutation.toml", "mutation.sqlite")
    run("cr-filter-operators", "mutation.sqlite", "mutation.toml")
    run("cosmic-ray", "baseline", "mutation.toml")
    run("cosmic-ray", "exec", "mutation.toml", "mutation.sqlite")
    mutants = sorted(_mutants(run("cosmic-ray", "dump", "mutation.sqlite")))
    for mutant in mutants:
        if not mutant.killed:
            _say(f"survived: {mutant.module}:{mutant.line} {mutant.operator}: {_code(mutant)}")
    _say(f"{module}: {sum(mutant.killed for mutant in mutants)} of {len(mutants)} killed")
    return mutants


def _mutants(dump: str) -> list[Mutant]:
    found = []
    for line in dump.splitlines():
        item, result = json.loads(line)
        (change,) = item["mutations"]
        if result["worker_outcome"] != "skipped":
            operator = change["operator_name"].removeprefix("core/")
            found.append(
                Mutant(change["module_path"], change["start_pos"][0], operator, result["test_outcome"] == "killed")
            )
    return found


def _runner(tree: Path) -> Callable[..., str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tree}/src:{tree}",
        "PYTHONDONTWRITEBYTECODE": "1",  # two mutants of one second and size would share the first's
        "SANDBOX_MODEL_STEPS": str(MODEL_STEPS),
    }

    def run(tool: str, *arguments: str) -> str:
        command = [str(Path(sys.executable).with_name(tool)), *arguments]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{shlex.join([tool, *arguments])} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        return done.stdout

    return run


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command


def _code(mutant: Mutant) -> str:
    return Path(mutant.module).read_text().splitlines()[mutant.line - 1].strip()


def _document(mutants: list[Mutant], began: float) -> dict[str, object]:
    modules: dict[str, dict[str, int]] = {}
    for mutant in mutants:
        counts = modules.setdefault(mutant.module, {"mutants": 0, "killed": 0})
        counts["mutants"] += 1
        counts["killed"] += mutant.killed
    killed = sum(mutant.killed for mutant in mutants)
    return {
        "n": len(mutants),
        "killed": killed,
        "share": round(killed / len(mutants), 4),
        "target": TARGET,
        "seconds": round(time.time() - began),
        "environment": {
            "python": platform.python_version(),
            "cosmic_ray": version("cosmic-ray"),
            "commit": subprocess.run(
                ["git", "describe", "--always", "--dirty"], check=True, capture_output=True, text=True
            ).stdout.strip(),
        },
        "modules": modules,
        "survivors": [
            {"module": each.module, "line": each.line, "operator": each.operator, "code": _code(each)}
            for each in mutants
            if not each.killed
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
