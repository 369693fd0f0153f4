"""What `sandbox exec` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sandbox.cli.given import Given
from sandbox.cli.program import Asked


@dataclass(frozen=True)
class ExecRequest:
    """What the command line asked for, as it was typed."""

    program: Asked
    given: Given
    env: tuple[str, ...]
    env_file: tuple[Path, ...]
    put: tuple[str, ...]
    get: tuple[str, ...]
    force: bool
    no_stdin: bool
    pty: bool
    as_json: bool = False
