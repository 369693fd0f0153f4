"""A file system is full or read-only: leases go on, what cannot be done is a typed error, and room makes it well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sandbox.config import HostConfig
from sandbox.hypervisor.inventory import find_machines
from sandbox.template.template import Template
from tests.conftest import PROGRAMS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to mount a small file system needs root")


@pytest.fixture
def places(template: Template) -> Iterator[Mapping[str, str]]:
    """Where small file systems are mounted, in a namespace that ends with the process."""
    with tempfile.TemporaryDirectory(prefix="sbx-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        for name in ("run", "data"):
            (Path(path) / name).mkdir(mode=0o755)
        yield {"SANDBOX_RUNTIME_DIR": f"{path}/run", "SANDBOX_DATA_DIR": f"{path}/data"}


def _in_namespace(places: Mapping[str, str], *arguments: str) -> dict[str, Any]:
    command = ["unshare", "--mount", sys.executable, str(PROGRAMS / "host_full_disk.py"), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **places}, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    assert find_machines(Path(places["SANDBOX_RUNTIME_DIR"])) == []
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_runtime_directory_without_room(places: Mapping[str, str], host_config: HostConfig) -> None:
    """A lease that is held goes on, claims get typed errors, and the same pool recovers when there is room again."""
    own_data = {"SANDBOX_DATA_DIR": str(host_config.data_dir)}
    said = _in_namespace({**places, **own_data}, "runtime")
    assert said["held"] == "held"
    refused = {"HYPERVISOR", "HOST_RESOURCES", "START", "POOL_TIMEOUT"}
    # The first may be a VM that was ready before; the control is that the others cannot be.
    assert set(said["meanwhile"][-2:]) <= refused, said
    assert said["recovered"]
    assert said["books"]


def test_data_directory_without_room(places: Mapping[str, str], host_config: HostConfig) -> None:
    """A template that does not fit, or cannot be written, is a typed error, and nothing half-made stays."""
    said = _in_namespace(places, "data", str(host_config.data_dir))
    assert said["full"] == "HOST_RESOURCES"
    assert said["read-only"] in {"TEMPLATE", "HYPERVISOR", "HOST_RESOURCES"}
    assert (said["room"], said["left"]) == ("42", [])
