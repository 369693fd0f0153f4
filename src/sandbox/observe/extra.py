"""What is said when an optional package is missing."""

from __future__ import annotations

from sandbox.errors import ConfigError


def missing(what: str, package: str, extra: str) -> ConfigError:
    """Return the error that tells which line of pip mends it."""
    return ConfigError(f"{what} needs {package}, which is not installed; run: pip install 'sandbox-vmpool[{extra}]'")
