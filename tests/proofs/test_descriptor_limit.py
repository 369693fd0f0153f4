"""Few file descriptors: whatever the limit, a pool works or says why it does not, and leaves nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox.hypervisor.inventory import leaks
from sandbox.template.template import Template
from tests.conftest import PROGRAMS

STEP = int(os.environ.get("SANDBOX_DESCRIPTOR_STEP", "0"))
LIMITS = range(32, 257, STEP) if STEP else (32, 38, 64, 256)
"""A process with four VMs needs some forty: most steps lie where one of its many openings must fail."""
AT_ONCE = 2


@pytest.fixture
def runtime(template: Template) -> Iterator[Path]:
    """A runtime directory of its own, so that what is left in it is ours."""
    with tempfile.TemporaryDirectory(prefix="sbx-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.timeout(120 + 30 * len(LIMITS))
def test_every_limit_works_or_is_a_typed_error(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From 32 to 256: the right answer, or an error of the library's own; never another, and never a process left."""

    def attempt(limit: int) -> str:
        command = [sys.executable, str(PROGRAMS / "host_under_limit.py"), str(limit)]
        environment = {**os.environ, "SANDBOX_RUNTIME_DIR": str(runtime)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert re.fullmatch(r"42|typed [A-Z_]+: .+", done.stdout.strip()), f"limit {limit}: {done}"
        assert done.returncode == 0, f"limit {limit}: {done}"
        return done.stdout.split(":")[0].strip()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = dict(zip(LIMITS, threads.map(attempt, LIMITS), strict=True))
    assert leaks(runtime) == []
    assert answers[256] == "42"
    assert any(answer.startswith("typed") for answer in answers.values()), "the control: some limits are too low"
    with capsys.disabled():
        print(f"\ndescriptors: N = {len(LIMITS)} limits, {dict(Counter(answers.values()))}")  # noqa: T201 - a figure
