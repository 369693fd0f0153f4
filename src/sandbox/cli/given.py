"""Options that have defaults in files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Given:
    """The options of a machine and of its program as they were typed; None where they were not."""

    image: str | None
    memory: str | None
    cpus: int | None
    profile: str | None
    timeout: float | None = None
    idle_timeout: float | None = None
    user: str | None = None
    cwd: str | None = None
    get_limit: str | None = None
    transfer_timeout: float | None = None
    exclude: tuple[str, ...] | None = None
