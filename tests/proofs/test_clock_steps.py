"""The host's wall clock jumps by an hour, or a year: nothing expires early or late; new guests know the new time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROGRAMS

STEPS = {"+1 h": 3600, "-1 h": -3600, "+1 y": 31536000, "-1 y": -31536000}


@pytest.mark.skipif(shutil.which("cc") is None, reason="a library that moves the clock has to be compiled")
@pytest.mark.usefixtures("template")
def test_steps_of_the_wall_clock(tmp_path: Path) -> None:
    """Leases, ages and durations follow the monotonic clock; guests restored after a step follow the wall clock.

    The kernel's own clock stays: a library between this one process and the kernel moves it, for all of the process.
    """
    library, step = tmp_path / "clock_step.so", tmp_path / "step"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, PROGRAMS / "clock_step.c"], check=True)
    step.write_bytes(bytes(8))
    environment = {**os.environ, "LD_PRELOAD": str(library), "CLOCK_STEP_FILE": str(step)}
    command = [sys.executable, str(PROGRAMS / "host_clock_steps.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for name, seconds in STEPS.items():
        after = said[name]
        assert after["stepped"] == pytest.approx(seconds, abs=1), "the control: the process does see the step"
        assert after["text"] == "held\n"
        assert not after["ended"]
        assert 150 < after["left"] <= 300
        assert 0 < after["duration"] < 30
        assert abs(after["guest off"]) < 2
        assert abs(after["receipt off"]) <= 0.5
    assert said["expired"] == 0
