"""Pruning removes what killed bakes have left, and nothing of a bake that runs or of a template in use."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any

import pytest

from sandbox.cli import image
from sandbox.image.store import Image, ImageStore
from sandbox.template import prune
from sandbox.template.hold import Hold, is_being_baked
from sandbox.template.prune import left_over, prune_templates
from sandbox.template.store import TemplateStore
from tests.damage import DAMAGE, damage
from tests.stored import publish_image, save_template

SERIES = "default-256m-1c"
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


class Host:
    """A data directory with three successive images of one name; the last has no template yet."""

    def __init__(self, directory: Path) -> None:
        self.images = ImageStore(directory / "images")
        self.templates = TemplateStore(directory / "templates")
        self.old, self.former, self.new = (publish_image(self.images, "default", text) for text in (b"1", b"2", b"3"))
        self.generations = [
            save_template(self.templates.directory, made_from.digest, SERIES, number)
            for number, made_from in enumerate((self.old, self.former), start=1)
        ]

    def prune(self) -> list[Image]:
        """Run the command; return the images that are left."""
        assert image.prune() == 0
        return [one for one in (self.old, self.former, self.new) if one.root.exists()]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("SANDBOX_DATA_DIR", str(tmp_path))
    return Host(tmp_path)


def test_the_image_of_a_template_in_use_stays_until_nobody_uses_it(host: Host) -> None:
    """A pool opens the image's files anew for each VM, whatever bears the image's name meanwhile."""
    held = Hold.take(host.generations[0].directory)
    assert held is not None
    assert host.prune() == [host.old, host.new]
    assert host.templates.ls() == host.generations[:1]
    host.images.verify(host.old)
    held.release()
    assert host.prune() == [host.new]
    assert host.templates.ls() == []


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_a_process_uses_stays_though_its_manifest_is_damaged(host: Host, kind: str) -> None:
    """Whatever lies in the manifest's place, and its image too: nothing tells any more which one that is."""
    held = Hold.take(host.generations[0].directory)
    assert held is not None
    damage(host.generations[0].directory / "manifest.json", kind)
    assert host.old in host.prune()
    assert (host.generations[0].directory / "memory").exists()
    held.release()
    assert host.prune() == [host.new]
    assert not host.generations[0].directory.exists()


def test_a_generation_that_was_chosen_stays_with_its_image(host: Host) -> None:
    """Every process is to use it, so also one that starts when no template of a named image is there."""
    host.templates.pin(SERIES, host.generations[0])
    assert host.prune() == [host.old, host.new]
    assert host.templates.chosen() == host.generations[:1]
    host.templates.pin(SERIES, None)
    assert host.prune() == [host.new]
    assert host.templates.chosen() == []


def test_no_image_goes_while_somebody_bakes(host: Host) -> None:
    """It could be the one that is baked, whose name another image has got meanwhile."""
    lock = host.templates.lock(host.generations[0].manifest.requirement)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert host.prune() == [host.old, host.former, host.new]
    assert host.prune() == [host.new]
