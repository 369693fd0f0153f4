"""Remove templates that nothing can use any more, and the images that only they needed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sandbox.errors import TemplateError
from sandbox.image.store import ImageStore, Pruned
from sandbox.stored import refused
from sandbox.template.hold import is_being_baked, unless_baked
from sandbox.template.manifest import MANIFEST
from sandbox.template.store import TemplateStore

_KEY = re.compile(r"[0-9a-f]{32}")
_WORK = re.compile(rf"\.bake-{_KEY.pattern}\.[0-9]+")
_OLD = re.compile(rf"\.old-{_KEY.pattern}.*")


def prune_templates(templates: Path, images: set[str]) -> list[str]:
    """Remove templates whose image is not among `images` (digests), old generations, and what killed bakes have left.

    A template that a process uses, or that is being baked, is left alone; running clones keep what they have mapped.
    Return the names that were removed. What is no template and no work of a bake stays. Raises `TemplateError` where
    they cannot be removed, such as another user's.
    """
    try:
        return _prune_templates(templates, images)
    except OSError as error:
        raise TemplateError(f"templates cannot be removed: {refused(error, templates)}") from error


def _prune_templates(templates: Path, images: set[str]) -> list[str]:
    removed = TemplateStore(templates).prune(lambda stored: stored.manifest.requirement.image in images)
    for path in left_over(templates):
        with unless_baked(_lock(path)) as is_free:  # a bake that begins now makes a directory of the same name
            if is_free and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path.name)
    for path in _of_another_version(templates):
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path.name)
    return removed


def prune_images(images: ImageStore, templates: Path) -> tuple[Pruned, list[str]]:
    """Remove the templates of images without a name, then the images that have neither a name nor a template.

    Templates that a process uses, and those chosen by hand, stay with their images: every restore opens them. While
    somebody bakes, or uses a template whose manifest is damaged, all images stay: nothing tells which one is needed.
    Return what was removed of images, and the names of the templates that were removed.
    """
    store, removed = TemplateStore(templates), []

    def in_use(named: set[str]) -> set[str]:
        chosen = {stored.manifest.requirement.image for stored in store.chosen()}
        present, whole = images.digests(), {image.digest for image in images.ls()}
        somebody_bakes = any(is_being_baked(lock) for lock in templates.glob("*.lock"))
        removed.extend(prune_templates(templates, (named | chosen) & whole))
        if somebody_bakes or store.unreadable():
            return present
        return {stored.manifest.requirement.image for stored in store.ls()}

    return images.prune(in_use), removed


def left_over(templates: Path) -> list[Path]:
    """Return the work directories of bakes that do not run any more."""
    work = sorted(path for path in templates.glob(".bake-*") if _WORK.fullmatch(path.name) and path.is_dir())
    return [path for path in work if not is_being_baked(_lock(path))]


def _of_another_version(templates: Path) -> list[Path]:
    """Templates as an earlier version of this library kept them, and what it was removing when it was killed."""
    plain = [path.parent for path in templates.glob(f"*/{MANIFEST}") if _KEY.fullmatch(path.parent.name)]
    return sorted([*plain, *(path for path in templates.glob(".old-*") if _OLD.fullmatch(path.name))])


def _lock(work: Path) -> Path:
    """Return the file that whoever bakes in this work directory has locked."""
    return work.with_name(f"{work.name.removeprefix('.bake-').partition('.')[0]}.lock")
