"""The agent's byte code, so that a booting guest need not compile it: that takes it a fifth of its boot."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_PYTHON = Path("/usr/bin/python3")
"""Debian's own: that of the image, when the host is of the same release."""
_COMPILE = """\
import py_compile, sys
for name in sys.argv[2:]:
    path = f"{sys.argv[1]}/{name}"
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(path, dfile=f"/usr/lib/sandbox-agent/{name}", doraise=True, invalidation_mode=mode)
"""
_SECONDS = 60


def compile_agent(sources: Mapping[str, bytes], python_version: str) -> dict[str, bytes]:
    """Return files to put beside the sources; none where the host has not the image's Python, which then compiles.

    `python_version` is that of the image's package `python3`.
    """
    version = _host_version()
    if version is None or not python_version.startswith(f"{version}."):
        return {}
    with tempfile.TemporaryDirectory() as directory:
        for name, data in sources.items():
            (Path(directory) / name).write_bytes(data)
        command = [str(_PYTHON), "-I", "-c", _COMPILE, directory, *sorted(sources)]
        subprocess.run(command, check=True, timeout=_SECONDS, capture_output=True)
        cached = sorted((Path(directory) / "__pycache__").iterdir())
        return {f"__pycache__/{path.name}": path.read_bytes() for path in cached}


@cache
def _host_version() -> str | None:
    """Return major and minor version of the host's own Python."""
    command = [str(_PYTHON), "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(command, check=True, timeout=_SECONDS, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
