"""What options are when they are not given: from a profile, from files, else built in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.cli.given import Given
from sandbox.config import TemplateConfig
from sandbox.errors import ConfigError
from sandbox.settings import Setting, load_settings, memory_mib

BUILT_IN: Mapping[str, Any] = {
    "image": "default",
    "memory": 256,
    "cpus": 1,
    "get_limit": "1G",
    "transfer_timeout": 600.0,
}
"""Those that have a value of their own; others are not set."""


@dataclass(frozen=True)
class Chosen:
    """The same, each with the value that counts."""

    template: TemplateConfig
    timeout: float | None
    idle_timeout: float | None
    user: str | None
    cwd: str | None
    get_limit: str
    transfer_timeout: float
    exclude: tuple[str, ...] | None


def chosen(given: Given) -> Chosen:
    """Return what counts in the working directory. Raises `ConfigError`."""
    said = load_settings().with_profile(given.profile)

    def value(name: str) -> Any:
        if (typed := getattr(given, name)) is not None:
            return typed
        return said[name].value if name in said else BUILT_IN.get(name)

    try:
        memory = memory_mib(value("memory"))
    except ValueError as error:
        raise ConfigError(f"--memory {error}") from None
    for name in ("timeout", "idle_timeout", "transfer_timeout"):
        if (seconds := value(name)) is not None and not seconds > 0:
            raise ConfigError(
                f"--{name.replace('_', '-')} {seconds:g} leaves no time; give a positive number of seconds"
            )
    return Chosen(
        TemplateConfig(image=value("image"), memory_mib=memory, vcpus=value("cpus")),
        **{name: value(name) for name in Chosen.__dataclass_fields__ if name != "template"},
    )


def origin(said: Mapping[str, Setting], name: str) -> Setting:
    """Return a setting, be it from a file or built in."""
    return said.get(name) or Setting(BUILT_IN.get(name), "built in" if name in BUILT_IN else "not set")
