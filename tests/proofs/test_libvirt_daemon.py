"""A libvirt daemon hangs, is killed, or is restarted while VMs are leased: the channel does not go through it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROGRAMS

ROUNDS = int(os.environ.get("SANDBOX_DAEMON_ROUNDS", "2"))
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="to give a daemon directories of its own needs root"),
    pytest.mark.usefixtures("template"),
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a libvirtd: the host's, or one of the library's version, unpacked from its package and not installed."""
    path = os.environ.get("SANDBOX_LIBVIRTD") or shutil.which("libvirtd", path=f"{os.environ['PATH']}:/usr/sbin")
    if path is not None:
        return path
    directory = tmp_path_factory.mktemp("libvirtd")
    query = ["dpkg-query", "--show", "--showformat=${Version}", "libvirt0"]
    version = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", f"libvirt-daemon={version}"]
    fetched = subprocess.run(fetch, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    if fetched.returncode != 0:
        pytest.skip(f"no libvirtd here, and apt-get has none to fetch: {fetched.stderr.strip()[-200:]}")
    (package,) = directory.glob("*.deb")
    subprocess.run(["dpkg", "--extract", package, directory / "root"], check=True)
    return str(directory / "root" / "usr" / "sbin" / "libvirtd")


def _with_daemon(program: str, *arguments: str, seconds: float = 120) -> dict[str, Any]:
    """Run a program in a mount namespace of its own and return what it says."""
    with tempfile.TemporaryDirectory(prefix="sbx-", dir="/tmp") as runtime:
        Path(runtime).chmod(0o755)
        environment = {**os.environ, "SANDBOX_RUNTIME_DIR": runtime}
        command = ["unshare", "--mount", sys.executable, str(PROGRAMS / program), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("fault", ["hang", "kill", "restart"])
def test_lease_outlives_the_daemon(daemon: str, fault: str) -> None:
    """The program's answer comes while the daemon is stopped, dead or replaced; the pool connects to the next one."""
    said = _with_daemon("host_with_daemon.py", daemon, *[fault] * ROUNDS, seconds=120 + 20 * ROUNDS)
    assert said == {"before": "42", fault: ["42", "42"] * ROUNDS, "restored after": "42"}


def test_nothing_of_a_killed_process_stays_with_a_daemon(daemon: str) -> None:
    """The agent ends a VM that runs, and the process that waits for the owner's end those that are paused."""
    assert _with_daemon("host_abandons_daemon.py", daemon) == {
        "killed by": signal.SIGKILL,
        "all are gone": True,
        "cleared": 1,
        "leaks": [],
    }
