"""What a file of settings may say."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from sandbox.described import described
from sandbox.errors import ConfigError
from sandbox.settings import memory_mib

Memory = Annotated[int, BeforeValidator(memory_mib), Field(ge=128, le=1024 * 1024)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return described(cls, core_schema, handler)


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

    get_limit: str | None = Field(default=None, pattern=r"^\s*\d+\s*([kKmMgGtT]?([iI]?[bB])?)\s*$")
    """Largest number of bytes that each `--get` copies, such as "64M"."""

    transfer_timeout: float | None = Field(default=None, gt=0)
    """Seconds that each copy may take."""

    profile: str | None = None
    """A profile that is used when none is named."""


class File(Defaults):
    profiles: dict[str, Profile] = Field(default_factory=dict)


def checked(path: Path, table: Mapping[str, Any]) -> File:
    """Return what the table of this file says. Raises `ConfigError`, which names the file and the setting."""
    try:
        return File.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = list(Profile.model_fields if len(first["loc"]) > 1 else File.model_fields)
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            said = f"there is no such setting; {f'is {near[0]!r} meant' if near else 'there are ' + ', '.join(known)}"
            raise ConfigError(f"{path}: {where}: {said}{'?' if near else ''}") from None
        raise ConfigError(
            f"{path}: {where}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})"
        ) from None
