"""One finding of `sandbox doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One finding. `fail` means that no VM can run; `warn` that something is worse than it could be."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
