"""`sandbox config show`: every setting that counts here, with its value, where that comes from, and what it means."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sandbox.cli.defaults import origin
from sandbox.cli.reporting import reporting
from sandbox.config import VARIABLES, HostConfig
from sandbox.described import meanings
from sandbox.settings import load_settings
from sandbox.settings_table import Defaults

_BY_VARIABLES = "by environment variables only"


@dataclass(frozen=True)
class _Line:
    section: str
    name: str
    value: Any
    origin: str
    meaning: str


@reporting
def run_config_show(profile: str | None, *, with_origin: bool, as_json: bool) -> int:
    """Print the settings; `with_origin` says where each comes from."""
    lines = list(_lines(profile))
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=1, default=str))
        return 0
    section = ""
    for line in lines:
        if line.section != section:
            section = line.section
            print(f"\n[{section}]" if section != _BY_VARIABLES else f"\n# {section}")
        sign = "# " if line.value is None or section == _BY_VARIABLES else ""
        said = f"  # {line.origin}" if with_origin else ""
        print(f"# {line.meaning}\n{sign}{line.name} = {_toml(line.value)}{said}")
    return 0


def _lines(profile: str | None) -> Iterator[_Line]:
    settings = load_settings()
    said = settings.with_profile(profile)
    said_of = meanings(Defaults)
    for name, meaning in said_of.items():
        setting = origin(said, name)
        yield _Line("", name, setting.value, setting.origin, _brief(meaning))
    for named, values in settings.profiles.items():
        for name, setting in values.items():
            yield _Line(f"profiles.{named}", name, setting.value, setting.origin, _brief(said_of[name]))
    host = HostConfig()
    for name, meaning in meanings(HostConfig).items():
        if (variable := VARIABLES.get(name)) is not None:
            source = variable if variable in os.environ else "built in"
            yield _Line(_BY_VARIABLES, variable, getattr(host, name), source, _brief(meaning))


def _brief(meaning: str) -> str:
    return " ".join(meaning.partition("\n\n")[0].split())


def _toml(value: Any) -> str:
    return "…" if value is None else json.dumps(list(value) if isinstance(value, tuple) else value, default=str)
