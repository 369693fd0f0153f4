"""Remove templates that nothing can use any more."""

from __future__ import annotations

import shutil
from pathlib import Path

from sandbox.errors import TemplateError
from sandbox.template.manifest import TemplateManifest


def prune_templates(templates: Path, images: set[str]) -> list[str]:
    """Remove every template whose image is not among `images` (digests), and what killed bakes left behind.

    Running clones keep what they have mapped. Return the names that were removed.
    """
    removed = []
    for directory in sorted(templates.iterdir()) if templates.is_dir() else []:
        if not directory.is_dir() or directory.name.startswith("."):
            continue
        try:
            manifest = TemplateManifest.load(directory)
        except TemplateError:
            manifest = None
        if manifest is None or manifest.requirement.image not in images:
            shutil.rmtree(directory, ignore_errors=True)
            directory.with_name(f"{directory.name}.lock").unlink(missing_ok=True)
            removed.append(directory.name)
    return removed
