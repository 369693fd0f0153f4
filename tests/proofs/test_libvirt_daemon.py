"""A libvirt daemon hangs, is killed, or is restarted while VMs are leased: the channel does not go through it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROGRAMS

DAEMON = os.environ.get("SANDBOX_LIBVIRTD") or shutil.which("libvirtd", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="to give a daemon directories of its own needs root"),
    pytest.mark.skipif(DAEMON is None, reason="no libvirtd here: it is in the package libvirt-daemon"),
    pytest.mark.usefixtures("template"),
]


def _with_daemon(*faults: str) -> dict[str, Any]:
    program = str(PROGRAMS / "host_with_daemon.py")
    with tempfile.TemporaryDirectory(prefix="sbx-", dir="/tmp") as runtime:
        Path(runtime).chmod(0o755)
        environment = {**os.environ, "SANDBOX_RUNTIME_DIR": runtime}
        command = ["unshare", "--mount", sys.executable, program, str(DAEMON), *faults]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["before"] == "42"
    return said


def test_lease_outlives_a_daemon_that_hangs_or_is_killed() -> None:
    """The program's answer comes while the daemon is stopped or dead; the pool connects to the next one."""
    said = _with_daemon("hang", "kill")
    assert said["hang"] == said["kill"] == ["42", "42"]
    assert said["restored after"] == "42"


def test_orderly_restart_of_the_daemon_ends_its_vms() -> None:
    """A daemon that ends in order destroys the VMs of our connection, as it was asked: the lease says so at once."""
    said = _with_daemon("restart")
    assert all(answer.startswith("GUEST_LOST") for answer in said["restart"])
    assert said["restored after"] == "42"
