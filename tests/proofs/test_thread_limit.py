"""Few threads: whatever the limit, a pool works or says why it does not, loses no lease, and leaves nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.hypervisor.cgroup_place import hierarchies
from sandbox.hypervisor.inventory import leaks
from sandbox.template.template import Template
from tests.conftest import PROGRAMS

FREE = (0, 1, 2, 3, 4, 6, 8, 60)
"""So many more threads than a process with one VM has: another VM takes some, and its QEMU ten or so."""


@pytest.fixture
def runtime(template: Template) -> Iterator[Path]:
    """A runtime directory of its own, so that what is left in it is ours."""
    with tempfile.TemporaryDirectory(prefix="sbx-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@contextmanager
def _group() -> Iterator[Path]:
    """A control group whose threads can be limited, QEMU's among them: as a container's are."""
    tree = hierarchies().get("pids")
    if tree is None or tree.version != 1 or os.geteuid() != 0:
        pytest.skip("needs root and a controller of processes of version 1")
    group = tree.own / f"sandbox-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


@pytest.mark.timeout(60 + 40 * len(FREE))
def test_every_limit_works_or_is_a_typed_error(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The right answer, or an error of the library's own; the first VM answers in any case, and another one later."""
    answers = {}
    environment = {**os.environ, "SANDBOX_RUNTIME_DIR": str(runtime), "SANDBOX_CGROUP": "off"}
    with _group() as group:
        for free in FREE:
            program = f'echo $$ > {group}/cgroup.procs && exec "$@"'
            command = ["sh", "-c", program, "sh", sys.executable, str(PROGRAMS / "host_without_threads.py")]
            command += [str(group), str(free)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            assert re.fullmatch(r"42|typed [A-Z_]+: .+", done.stdout.strip()), f"{free} free: {done}"
            assert done.returncode == 0, f"{free} free: {done}"
            answers[free] = done.stdout.split(":")[0].strip()
    assert leaks(runtime) == []
    assert answers[60] == "42"
    assert answers[0].startswith("typed"), "the control: that limit is too low"
    with capsys.disabled():
        print(f"\nthreads: N = {len(FREE)} limits, {dict(Counter(answers.values()))}")  # noqa: T201 - a figure
