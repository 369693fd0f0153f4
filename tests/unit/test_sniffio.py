"""Sniffio may be installed beside us: anyio then asks it which library runs, and in callbacks it knows none."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import PROGRAMS


def test_callbacks_work_while_sniffio_is_installed() -> None:
    """Frames, deadlines, signs of life and the end of the channel are handled by callbacks, and none of them fails."""
    program = [sys.executable, str(PROGRAMS / "host_with_sniffio.py")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {"events": 4001, "outcome": "timed_out", "faults": []}
