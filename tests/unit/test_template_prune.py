"""Pruning removes what killed bakes have left, and nothing of a bake that runs."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any

import pytest

from sandbox.template import prune
from sandbox.template.hold import is_being_baked
from sandbox.template.prune import left_over, prune_templates

KEY = "0123456789abcdef" * 2


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """What a killed bake has left."""
    path = tmp_path / f".bake-{KEY}.3"
    path.mkdir()
    (path / "memory").touch()
    (tmp_path / f"{KEY}.lock").touch()
    return path


def test_what_a_killed_bake_has_left_goes_while_nobody_can_bake(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bake that begins makes the same directory anew, so none may begin between the look and the removal."""
    was_locked = []
    rmtree = shutil.rmtree

    def remove(path: Path, **options: Any) -> None:
        was_locked.append(is_being_baked(work.with_name(f"{KEY}.lock")))
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", remove)
    assert prune_templates(work.parent, set()) == [work.name]
    assert not work.exists()
    assert was_locked == [True]
    assert not is_being_baked(work.with_name(f"{KEY}.lock"))


def test_a_bake_that_has_begun_since_the_look_is_left_alone(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of what is left over is old by the time that its last directory comes up."""
    found = left_over(work.parent)
    assert found == [work], "the control"
    with work.with_name(f"{KEY}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(prune, "left_over", lambda _: found)
        assert prune_templates(work.parent, set()) == []
    assert (work / "memory").exists()
