"""Variables for the guest: `--env K=V`, `--env K`, and files of such lines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from sandbox.errors import ConfigError

_QUOTED = re.compile(r"""(['"])(.*)\1\s*(?:\s#.*)?$""")


def variables(texts: Iterable[str], files: Iterable[Path]) -> dict[str, str]:
    """Return all variables; those on the command line override those from files."""
    found: dict[str, str] = {}
    for file in files:
        found |= _from_file(file)
    return found | dict(_from_text(text) for text in texts)


def _from_text(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if separator:
        return name, value
    if name not in os.environ:
        raise ConfigError(f"--env {name}: you have no such variable to pass on; write --env {name}=VALUE")
    return name, os.environ[name]


def _from_file(path: Path) -> dict[str, str]:
    """Read `KEY=VALUE` lines. Empty lines and comments are skipped, `export` and a pair of quotes are taken off.

    A value without quotes is all that follows, `#` too. No message tells a line's text: it may be a secret.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--env-file {path} cannot be read: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip().removeprefix("export ").strip()
        if not text or text.startswith("#"):
            continue
        name, separator, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if not separator or not name or any(character.isspace() for character in name):
            raise ConfigError(f"--env-file {path}, line {number}: expected KEY=VALUE")
        if value[:1] in ("'", '"'):
            quoted = _QUOTED.match(value)
            if quoted is None:
                raise ConfigError(
                    f"--env-file {path}, line {number}: the value of {name} has no closing quote at its end"
                )
            value = quoted[2]
        if "\0" in name + value:
            raise ConfigError(f"--env-file {path}, line {number}: no variable can hold a NUL byte")
        found[name] = value
    return found
