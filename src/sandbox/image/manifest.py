"""The description of an image, whose digest names the image: no time and no path is in it."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from sandbox.image.recipe import Recipe

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# A plain name: a manifest must not lead out of its image's directory.
FileName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Frozen):
    """What a file must be."""

    size: int
    sha256: Sha256


class PackageRecord(_Frozen):
    """One installed package."""

    name: str
    version: str


class ImageManifest(_Frozen):
    """All that is in an image, and what it was made from."""

    format: Literal[1] = 1
    name: str
    recipe: Recipe
    suite: str
    """The Debian release, such as `bookworm`."""
    arch: str
    kernel: str
    """The kernel's version, as `uname -r` says it."""
    packages: tuple[PackageRecord, ...]
    pip: tuple[PackageRecord, ...]
    files: dict[FileName, FileRecord]
    agent: Sha256
    """The digest of the agent's sources."""
    protocol: int
    """The version of the protocol that the agent speaks."""
    layer: Sha256
    """The key of the cached layer that holds the root file system and Debian's kernel."""
    kernel_layer: Sha256 | None = Field(default=None, exclude_if=lambda key: key is None)
    """The key of the cached layer that holds the kernel, if it is not Debian's."""
    inputs: Sha256
    """The digest of everything that the image was asked to be made from."""

    def canonical(self) -> bytes:
        """Return the one JSON text of this manifest."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.canonical()).hexdigest()


def canonical_json(value: object) -> bytes:
    """Render with sorted keys and no spaces, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def digest_of(value: object) -> str:
    """Return the digest of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
