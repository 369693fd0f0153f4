"""The environment of a process in which tests measure: `scripts/test --coverage` does not trace it."""

from __future__ import annotations

import os

UNTRACED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS_")}
"""Tracing takes time and memory, and a file to write at the end. Without `--coverage`, this is `os.environ`."""
