"""Defaults of the command line and named sizes of machines, from files: `sandbox.toml` and `[tool.sandbox]`.

Three places are looked at, and what a later one says counts: the system's file, the user's, and the project's, which is
the first `sandbox.toml`, or `pyproject.toml` with a table `tool.sandbox`, in the working directory or above it. No file
says where this library keeps its data or what it uses of the host: a project is not to be trusted with that.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from sandbox.described import Described
from sandbox.errors import ConfigError
from sandbox.stored import read_stored

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


Memory = Annotated[int, BeforeValidator(memory_mib), Field(ge=128, le=1024 * 1024)]


class _Table(Described):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Profile(_Table):
    """A machine's image and size by a name."""

    image: str | None = None
    """Recipe name, or digest of a built image."""

    memory: Memory | None = None
    """Guest memory: MiB, or text such as "512M" or "2G". Half of it is the disk at most."""

    cpus: int | None = Field(default=None, ge=1, le=64)
    """Virtual processors."""


class Defaults(Profile):
    """What a program gets for which neither the command line nor a profile says another value."""

    timeout: float | None = Field(default=None, gt=0)
    """Seconds until the program is killed."""

    idle_timeout: float | None = Field(default=None, gt=0)
    """The same, without output."""

    user: str | None = Field(default=None, min_length=1)
    """User in the guest."""

    cwd: str | None = Field(default=None, min_length=1)
    """Working directory in the guest."""

    exclude: tuple[str, ...] | None = None
    """What `--project` leaves out."""

    get_limit: str | None = None
    """Largest number of bytes that each `--get` copies, such as "64M"."""

    transfer_timeout: float | None = Field(default=None, gt=0)
    """Seconds that each copy may take."""

    profile: str | None = None
    """A profile that is used when none is named."""


class _File(Defaults):
    profiles: dict[str, Profile] = Field(default_factory=dict)


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


def user_file() -> Path:
    """Return the user's file, be it there or not."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(home, "sandbox", FILE)


def load_settings(directory: Path) -> Settings:
    """Return the settings that count in a directory. Raises `ConfigError`, which names the file. Blocks."""
    files: list[Path] = []
    values: dict[str, Setting] = {}
    profiles: dict[str, dict[str, Setting]] = {}
    for path, table in _tables(directory):
        found = _checked(path, table)
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


def _tables(directory: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for path in (SYSTEM_FILE, user_file()):
        if (table := _read(path)) is not None:
            yield path, table
    for place in (directory, *directory.parents):
        if (table := _read(place / FILE)) is not None:
            yield place / FILE, table
            return
        tools = (_read(place / _PROJECT_FILE) or {}).get("tool")
        if isinstance(tools, dict) and isinstance(table := tools.get("sandbox"), dict):
            yield place / _PROJECT_FILE, table
            return


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a file says; None if there is none, or none that we may look for."""
    try:
        return tomllib.loads(read_stored(path).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        if path.name == _PROJECT_FILE:  # not ours to complain about
            return None
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except OSError as error:
        if path.name == _PROJECT_FILE or isinstance(error, PermissionError):
            return None
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _checked(path: Path, table: Mapping[str, Any]) -> _File:
    try:
        return _File.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = list(Profile.model_fields if len(first["loc"]) > 1 else _File.model_fields)
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            said = f"there is no such setting; {f'is {near[0]!r} meant' if near else 'there are ' + ', '.join(known)}"
            raise ConfigError(f"{path}: {where}: {said}{'?' if near else ''}") from None
        raise ConfigError(
            f"{path}: {where}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"
        ) from None
