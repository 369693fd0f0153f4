"""What a template was made of, and the digests that tell whether it still is."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from sandbox.errors import TemplateError
from sandbox.hypervisor.domain_xml import DEVICES_VERSION, command_line
from sandbox.hypervisor.spec import Platform
from sandbox.stored import read_stored, seal, unseal, write_stored
from sandbox.template.digest import digest_once
from sandbox.template.lint import LintReport

FORMAT = 4
MEMORY, STATE, MANIFEST = "memory", "state", "manifest.json"
_REMEDY = "`sandbox template prune` removes it, and the next run bakes the template anew"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Requirement(_Frozen):
    """Everything that a saved state depends on. QEMU itself checks next to nothing of it."""

    format: int = FORMAT
    image: str
    memory_mib: int
    vcpus: int
    qemu_version: str
    libvirt_version: str
    """It decides the addresses of devices and how QEMU is told to make them."""
    machine_type: str
    accelerator: str
    cpu: str
    command_line: str
    devices: int = DEVICES_VERSION

    @classmethod
    def of(cls, image_digest: str, memory_mib: int, vcpus: int, platform: Platform) -> Requirement:
        return cls(
            image=image_digest,
            memory_mib=memory_mib,
            vcpus=vcpus,
            qemu_version=platform.qemu_version,
            libvirt_version=platform.libvirt,
            machine_type=platform.machine_type,
            accelerator=platform.accelerator,
            cpu=platform.cpu,
            command_line=command_line(platform.accelerator),
        )

    def differences(self, other: Requirement) -> tuple[str, ...]:
        """Return the names of the parts that differ."""
        ours, theirs = self.model_dump(), other.model_dump()
        return tuple(name for name in ours if ours[name] != theirs[name])

    @property
    def key(self) -> str:
        """The template's name: equal for equal requirements, different as soon as one part differs."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class FileDigest(_Frozen):
    """Size in bytes and digest of what one file reads as; see `digest_sparse`."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, *, is_final: bool = False) -> FileDigest:
        """Return those of a file; see `digest_once`."""
        return cls(size=path.stat().st_size, sha256=digest_once(path, is_final=is_final))


class TemplateManifest(_Frozen):
    """Written last: a template without it does not exist."""

    requirement: Requirement
    series: str
    """What successive templates have in common: the image's name, the machine's size, and the recipe's key."""
    generation: int
    """Counts the templates of a series, from 1."""
    agent: int
    created: str
    """UTC, ISO 8601."""
    freeze_seconds: float
    """How long the guest stood still until its device state was on disk."""
    files: dict[str, FileDigest]
    lint: LintReport
    """What was looked for in the guest before it was frozen, and found."""

    @field_validator("created")
    @classmethod
    def _check_created(cls, text: str) -> str:
        try:
            datetime.datetime.fromisoformat(text).timestamp()
        except OverflowError as error:
            raise ValueError(str(error)) from error
        return text

    @property
    def baked_at(self) -> float:
        """When it was made, by this process's monotonic clock; such a time may be negative, but not in the future."""
        age = time.time() - datetime.datetime.fromisoformat(self.created).timestamp()
        return time.monotonic() - max(0.0, age)

    @classmethod
    def load(cls, directory: Path) -> TemplateManifest | None:
        """Return the manifest of a template directory, None when there is none.

        Raises `TemplateError` unless it is, bit by bit, what this version of sandbox has written.
        """
        path = directory / MANIFEST
        try:
            return cls.model_validate_json(json.dumps(unseal(read_stored(path))))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TemplateError(f"{path} cannot be read: {error.strerror}; {_REMEDY}") from error
        except ValidationError as error:
            raise TemplateError(f"{path} is damaged: {error.errors()[0]['msg']}; {_REMEDY}") from error
        except ValueError as error:
            raise TemplateError(f"{path} is damaged: {error}; {_REMEDY}") from error

    def save(self, directory: Path) -> None:
        """Write it into a template's directory."""
        write_stored(directory / MANIFEST, seal(self.model_dump(mode="json")))

    def verify(self, directory: Path, requirement: Requirement) -> None:
        """Raise `TemplateError` unless the files are what was baked, for exactly this requirement.

        A process reads them all the first time, and again when `stat` tells that they have changed.
        """
        if self.requirement != requirement:
            names = ", ".join(requirement.differences(self.requirement))
            raise TemplateError(f"the template was made for another {names}")
        for name in (MEMORY, STATE):
            expected = self.files.get(name)
            try:
                found = FileDigest.of(directory / name)
            except OSError as error:
                raise TemplateError(f"{directory / name} cannot be read: {error.strerror}") from error
            if found != expected:
                raise TemplateError(f"{directory / name} differs from its manifest")
