"""Defaults of the command line and named sizes of machines, from files: `sandbox.toml` and `[tool.sandbox]`.

Three places are looked at, and what a later one says counts: the system's file, the user's, and the project's, which is
the first `sandbox.toml`, or `pyproject.toml` with a table `tool.sandbox`, in the working directory or above it. No file
says where this library keeps its data or what it uses of the host: a project is not to be trusted with that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.errors import ConfigError
from sandbox.stored import read_stored

if TYPE_CHECKING:
    from sandbox.settings_table import Profile

SYSTEM_FILE = Path("/etc/sandbox/sandbox.toml")
FILE = "sandbox.toml"
_PROJECT_FILE = "pyproject.toml"
_MEMORY = re.compile(r"^(\d+)\s*([mg]?)(?:i?b)?$", re.IGNORECASE)


def memory_mib(value: object) -> int:
    """Read a size such as 512, "512", "512M" or "2G"; raise `ValueError` for what is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _MEMORY.match(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size; write for example 512 (MiB), 512M or 2G")
    return int(match[1]) * (1024 if match[2].lower() == "g" else 1)


@dataclass(frozen=True)
class Setting:
    """A value, and where it was said."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Settings:
    """What all files say together."""

    files: tuple[Path, ...] = ()
    """Those that were read."""
    values: Mapping[str, Setting] = field(default_factory=dict)
    """By the names of `Defaults`; without those that no file says."""
    profiles: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)

    def with_profile(self, name: str | None) -> Mapping[str, Setting]:
        """Return the values, a profile's before others. Raises `ConfigError` if there is no such profile."""
        name = name if name is not None else self.values["profile"].value if "profile" in self.values else None
        if name is None:
            return self.values
        if name not in self.profiles:
            known = ", ".join(sorted(self.profiles)) or f"none; write [profiles.{name}] into {FILE}"
            raise ConfigError(f"there is no profile {name!r}; there is {known}")
        return {**self.values, **self.profiles[name]}


def user_file() -> Path | None:
    """Return the user's file, be it there or not; None for a user without a home."""
    try:
        home = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    except RuntimeError:
        return None
    return Path(home, "sandbox", FILE)


def load_settings(directory: Path | None = None) -> Settings:
    """Return the settings that count in a directory, by default the working directory. Blocks.

    A working directory that was removed has no project. Raises `ConfigError`, which names the file.
    """
    files: list[Path] = []
    values: dict[str, Setting] = {}
    profiles: dict[str, dict[str, Setting]] = {}
    for path, table in _tables(directory):
        from sandbox.settings_table import Defaults, Profile, checked  # noqa: PLC0415 - costs time, needed seldom

        found = checked(path, table)
        files.append(path)
        origin = str(path)
        values |= {name: Setting(value, origin) for name, value in _said(found, Defaults, path.parent).items()}
        for name, profile in found.profiles.items():
            place = f"{origin} [profiles.{name}]"
            profiles[name] = {key: Setting(value, place) for key, value in _said(profile, Profile, path.parent).items()}
    return Settings(tuple(files), values, profiles)


def _said(model: Profile, kind: type[Profile], place: Path) -> dict[str, Any]:
    """Return what a table says; a recipe's file lies where its path leads from the file that names it."""
    names = kind.model_fields.keys() & model.model_fields_set
    said = {name: value for name in names if (value := getattr(model, name)) is not None}
    if said.get("image", "").endswith(".toml"):
        said["image"] = str(place / said["image"])
    return said


def _tables(directory: Path | None) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for path in (SYSTEM_FILE, user_file()):
        if path is not None and (table := _read(path)) is not None:
            yield path, table
    try:
        directory = directory or Path.cwd()
    except FileNotFoundError:
        return
    for place in (directory, *directory.parents):
        if (table := _read(place / FILE)) is not None:
            yield place / FILE, table
            return
        tools = (_read(place / _PROJECT_FILE) or {}).get("tool")
        if isinstance(tools, dict) and isinstance(table := tools.get("sandbox"), dict):
            yield place / _PROJECT_FILE, table
            return


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a file says; None if there is none, or none in a directory that we may look into."""
    is_ours = path.name == FILE
    try:
        content = read_stored(path)
    except OSError as error:
        if not is_ours or not os.path.lexists(path):
            return None
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not is_ours and b"sandbox" not in content:
        return None
    import tomllib  # noqa: PLC0415 - the same

    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        if not is_ours:
            return None
        raise ConfigError(f"{path} cannot be read: {error}") from None
