"""What `sandbox exec` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sandbox.cli.program import Asked


@dataclass(frozen=True)
class ExecRequest:
    """What the command line asked for, as it was typed."""

    program: Asked
    exclude: tuple[str, ...] | None
    timeout: float | None
    idle_timeout: float | None
    env: tuple[str, ...]
    env_file: tuple[Path, ...]
    cwd: str | None
    user: str | None
    put: tuple[str, ...]
    get: tuple[str, ...]
    get_limit: str
    transfer_timeout: float
    force: bool
    no_stdin: bool
    pty: bool
    memory: str
    cpus: int
    image: str
    as_json: bool = False
