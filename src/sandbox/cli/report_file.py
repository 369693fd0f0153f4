"""A file that an option names for a report: looked at before the work begins, written when it is done."""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.errors import ConfigError, HostFileError


def check_report_file(option: str, path: Path | None) -> None:
    """Raise `ConfigError` if the file cannot be written, as far as can be told without touching it."""
    if path is None:
        return
    directory = path.absolute().parent
    try:
        if path.is_dir():
            raise ConfigError(f"{option} {path} is a directory; name a file")
        if not directory.is_dir():
            raise ConfigError(f"{option} {path}: there is no directory {directory}; make it first")
        may_write = os.access(path if path.exists() else directory, os.W_OK)
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}") from None
    if not may_write:
        raise ConfigError(f"{option} {path} cannot be written: Permission denied")


def write_report_file(option: str, path: Path, text: str) -> None:
    """Write the file whole; raises `HostFileError`."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostFileError(error.errno, f"{option} {path} cannot be written: {error.strerror}") from error
