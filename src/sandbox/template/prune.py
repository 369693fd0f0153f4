"""Remove templates that nothing can use any more."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from sandbox.errors import TemplateError
from sandbox.template.manifest import TemplateManifest


def prune_templates(templates: Path, images: set[str]) -> list[str]:
    """Remove every template whose image is not among `images` (digests), and what killed bakes left behind.

    A template that is being baked right now is left alone; running clones keep what they have mapped. Return the
    names that were removed.
    """
    removed = []
    for directory in sorted(path for path in templates.glob("*") if path.is_dir()):
        if _is_being_baked(templates, directory.name.rpartition("-")[2]):
            continue
        if directory.name.startswith(".") or not _is_wanted(directory, images):
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(directory.name)
    return removed


def left_over(templates: Path) -> list[Path]:
    """Return the work directories of bakes that do not run any more."""
    work = sorted(path for path in templates.glob(".bake-*") if path.is_dir())
    return [path for path in work if not _is_being_baked(templates, path.name.rpartition("-")[2])]


def _is_wanted(directory: Path, images: set[str]) -> bool:
    try:
        manifest = TemplateManifest.load(directory)
    except TemplateError:
        return False
    return manifest is not None and manifest.requirement.image in images


def _is_being_baked(templates: Path, key: str) -> bool:
    try:
        lock = os.open(templates / f"{key}.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
