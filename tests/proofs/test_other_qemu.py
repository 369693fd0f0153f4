"""QEMU was replaced by another version: what the former one saved is not for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sandbox.errors import TemplateError
from sandbox.hypervisor.facts import load_facts
from sandbox.template.template import Template

OTHER = """#!/bin/sh
case $1 in
--version) {real} "$@" | sed 's/version [0-9.]*/version 99.0.0/' ;;
*) exec {real} "$@" ;;
esac
"""


def test_template_of_another_qemu_is_refused(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new version is noticed though facts are cached, has a template of its own, and refuses this one by name."""
    real = shutil.which("qemu-system-x86_64")
    before = load_facts(tmp_path)
    required = template.manifest.requirement
    assert before.qemu_version == required.qemu_version, "the control: it is this QEMU's"
    template.manifest.verify(template.directory, required)

    for part in (tmp_path, *tmp_path.parents[:2]):  # QEMU's own user must get there
        part.chmod(0o755)
    other = tmp_path / "bin" / "qemu-system-x86_64"
    other.parent.mkdir()
    other.write_text(OTHER.format(real=real))
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:{os.environ['PATH']}")
    after = load_facts(tmp_path)
    assert after.qemu_version.startswith("99.0.0")
    needed = required.model_copy(update={"qemu_version": after.qemu_version})
    assert needed.key != required.key
    with pytest.raises(TemplateError, match="qemu_version"):
        template.manifest.verify(template.directory, needed)
