"""Pointers of the image store: small files, each of which says what a name, or what was asked for, stands for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import ImageError
from sandbox.stored import read_stored, refused

NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,80}")
DIGEST = re.compile(r"[0-9a-f]{64}")
_REMEDY = "remove it, or run `sandbox image build` for what it names"


@dataclass(frozen=True)
class Fault:
    """Something in the store that is not what it should be."""

    path: Path
    said: str
    """What is wrong with it, and what to do."""


@dataclass(frozen=True)
class Pointer:
    """What a name, or inputs, stand for."""

    digest: str
    origin: str = ""
    """The recipe's file."""


def read_pointer(path: Path, names: re.Pattern[str]) -> Pointer | Fault | None:
    """Return what a pointer says, or what is wrong with it; None if there is none. Its own name must be of `names`."""
    if not names.fullmatch(path.name):
        return Fault(path, f"{path} has no name that an image could have: remove it")
    try:
        lines = os.fsdecode(read_stored(path)).split("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        return Fault(path, f"{path} cannot be read: {error.strerror}: {_REMEDY}")
    if not DIGEST.fullmatch(lines[0]):
        return Fault(path, f"{path} is damaged, it holds no digest: {_REMEDY}")
    return Pointer(lines[0], lines[1] if len(lines) > 1 else "")


def entries(directory: Path) -> list[Path]:
    """Return what lies in a directory, but for what is being written; nothing where there is no directory."""
    try:
        return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ImageError(f"images cannot be listed: {refused(error, directory)}") from error


def may_exist(origin: str) -> bool:
    """Return whether a recipe's file is there, or may be for all that we can see."""
    try:
        return Path(origin).exists()
    except OSError:
        return True
