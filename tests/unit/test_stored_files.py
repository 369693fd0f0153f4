"""Whatever has become of a file that is kept on disk: it is healed, or refused by name with what to do."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.cli import image as image_commands
from sandbox.cli import template as template_commands
from sandbox.errors import ImageError, TemplateError
from sandbox.image.store import ImageStore
from sandbox.stored import read_stored, seal, unseal, write_stored
from sandbox.template.manifest import MANIFEST, TemplateManifest
from sandbox.template.store import TemplateStore
from tests.damage import DAMAGE, damage, repair
from tests.stored import publish_image, save_template

SERIES = "default-256m-1c@01234567"
KINDS = pytest.mark.parametrize("kind", DAMAGE)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with two images and a template of each."""
    monkeypatch.setenv("SANDBOX_DATA_DIR", str(tmp_path))
    store = ImageStore(tmp_path / "images")
    for generation, name in enumerate(("other", "default"), start=1):
        made = publish_image(store, name, name.encode())
        save_template(tmp_path / "templates", made.digest, SERIES, generation)
    return tmp_path


def test_what_was_sealed_is_known_again() -> None:
    """Each of its bits counts, but for those that only change how it is written."""
    document = {"name": "a", "numbers": [1, 2.5, None], "text": "ä\n"}
    sealed = seal(document)
    assert unseal(sealed) == document
    for place in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[place // 8] ^= 1 << place % 8
        try:
            found = unseal(bytes(changed))
        except ValueError:
            continue
        assert found == document, place


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """A failure leaves what was there and nothing else, and names the file."""
    path = tmp_path / "file"
    write_stored(path, b"one")
    assert (read_stored(path), path.stat().st_mode & 0o777) == (b"one", 0o644)
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        write_stored(tmp_path / "directory", b"two")
    assert raised.value.filename == str(tmp_path / "directory")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "directory", path]
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="Too large") as large:
        read_stored(path)
    assert large.value.errno == errno.EFBIG


@KINDS
def test_a_damaged_name_costs_no_image(data: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused with its path and what to do; others work, `ls` tells of it, pruning keeps its image."""
    store = ImageStore(data / "images")
    image, place = store.find("default"), data / "images/names/default"
    digest = place.read_bytes()
    for seed in range(5):
        damage(place, kind, seed)
        if (found := store.names().get("default")) is None:
            with pytest.raises(ImageError, match=r"names/default.*remove it, or run `sandbox image build`"):
                store.find("default")
            assert image_commands.ls(as_json=False) == 0
            assert str(place) in capsys.readouterr().err
            assert image_commands.prune() == 0
            assert store.find(image.digest) == image
        else:  # the bit has made another digest of it, which no image has
            assert found == image.digest or kind == "flipped"
            with pytest.raises(ImageError) if found != image.digest else pytest.MonkeyPatch.context():
                store.find("default")
        assert store.find("other").name == "other"
        publish_image(store, "default", b"default")
        assert store.find("default") == image, "it is healed by a build"
        repair(place, digest)


@KINDS
def test_a_damaged_pointer_to_what_was_built_is_built_anew(data: Path, kind: str) -> None:
    """It is as if nothing had been built from these inputs, until something is."""
    store = ImageStore(data / "images")
    image = store.find("default")
    assert store.built_from(image.manifest.inputs) == image
    damage(store.place_of_inputs(image.manifest.inputs), kind)
    assert store.built_from(image.manifest.inputs) in (None, image)
    publish_image(store, "default", b"default")
    assert store.built_from(image.manifest.inputs) == image


@KINDS
def test_a_damaged_image_is_refused_and_told(data: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By name, and `ls` lists the others; a build replaces it."""
    store = ImageStore(data / "images")
    image = store.find("default")
    damage(image.directory / "manifest.json", kind)
    with pytest.raises(ImageError, match=r"is damaged.*sandbox image build"):
        store.find("default")
    assert [found.name for found in store.ls()] == ["other"]
    assert image_commands.ls(as_json=True) == 0
    captured = capsys.readouterr()
    assert [row["name"] for row in json.loads(captured.out)] == ["other"]
    assert "is damaged" in captured.err
    assert publish_image(store, "default", b"default") == store.find("default") == image


@KINDS
def test_the_layers_of_an_image_that_cannot_be_read_stay(data: Path, kind: str) -> None:
    """To make them anew takes a mirror and a minute, and the image in use has their files."""
    store = ImageStore(data / "images")
    image = publish_image(store, "default", b"new", layer="1" * 64)
    damage(image.directory / "manifest.json", kind)
    assert image_commands.prune() == 0
    assert image.root.exists()
    assert (store.layers / ("1" * 64)).exists()
    assert publish_image(store, "default", b"new", layer="1" * 64) == image
    publish_image(store, "default", b"newer", layer="2" * 64)
    assert image_commands.prune() == 0
    assert not (store.layers / ("1" * 64)).exists(), "the control"


@KINDS
def test_a_damaged_template_is_no_template(data: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told by `ls` and removed by `prune`; the others stay."""
    store = TemplateStore(data / "templates")
    first, second = store.ls()
    manifest = (first.directory / MANIFEST).read_bytes()
    for seed in range(5):
        damage(first.directory / MANIFEST, kind, seed)
        with pytest.raises(TemplateError, match=r"manifest\.json.*(damaged|cannot be read).*template prune"):
            TemplateManifest.load(first.directory)
        assert store.ls() == [second]
        assert template_commands.ls(as_json=True) == 0
        captured = capsys.readouterr()
        assert [row["name"] for row in json.loads(captured.out)] == [second.name]
        assert str(first.directory) in captured.err
        repair(first.directory / MANIFEST, manifest)
    damage(first.directory / MANIFEST, kind)
    assert template_commands.prune() == 0
    assert not first.directory.exists()
    assert store.ls() == [second]


def test_every_bit_of_a_templates_manifest_counts(data: Path) -> None:
    """A flipped bit is found, or changes nothing."""
    (stored, _) = TemplateStore(data / "templates").ls()
    path = stored.directory / MANIFEST
    content, source = path.read_bytes(), random.Random(1)
    for _ in range(2000):
        changed = bytearray(content)
        changed[source.randrange(len(content))] ^= 1 << source.randrange(8)
        path.write_bytes(changed)
        try:
            found = TemplateManifest.load(stored.directory)
        except TemplateError:
            continue
        assert found == stored.manifest


@KINDS
def test_a_damaged_choice_is_no_choice(
    data: Path, kind: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest generation is used; a warning, and `ls`, say which file it is and what to do."""
    store = TemplateStore(data / "templates")
    store.pin(SERIES, store.ls()[0])
    place = data / "templates/pins" / SERIES
    damage(place, kind)
    assert store.pinned(SERIES) is None
    assert "template_pin_ignored" in caplog.text
    assert template_commands.ls(as_json=False) == 0
    said = capsys.readouterr().err
    if kind == "flipped" and not said:  # another name, which no template has
        return
    assert f"{place} " in said
    assert "sandbox template rollback" in said
    if kind == "a directory":
        with pytest.raises(TemplateError, match="remove what is there"):
            store.pin(SERIES, store.ls()[0])
        repair(place, b"")
    store.pin(SERIES, store.ls()[0])
    assert store.pinned(SERIES) == store.ls()[0]


def test_what_does_not_belong_into_a_store_stays(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pruning removes nothing that it does not know; it says what it has left."""
    odd = [
        data / "images/objects/notes",
        data / "images/layers/backup of yesterday",
        data / "images/names" / os.fsdecode(b"caf\xe9"),
        data / "templates/mine/manifest.json",
        data / "templates/.bake-mine/memory",
        data / "templates/.old-mine",
    ]
    for path in odd:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert image_commands.prune() == 0
    assert all(path.exists() for path in odd)
    assert template_commands.prune() == 0
    assert all(path.exists() for path in odd)
    assert image_commands.ls(as_json=False) == 0
    said = capsys.readouterr().err
    assert all(name in said for name in ("notes", "backup of yesterday", "caf"))


READ_ONLY = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from sandbox.errors import SandboxError
from sandbox.image.store import ImageStore
from sandbox.template.prune import prune_templates
from sandbox.template.store import TemplateStore
from sandbox.hypervisor.facts import load_facts
if os.geteuid() == 0:  # only now: others may not be able to read this checkout
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
data = Path(sys.argv[1])
templates = TemplateStore(data / "templates")
for act in (
    lambda: ImageStore(data / "images").prune(),
    lambda: templates.pin("{series}", templates.ls()[0]),
    lambda: prune_templates(data / "templates", set()),
):
    try:
        act()
    except SandboxError as error:
        print(error)
"""


def test_another_users_directory_is_told_as_such(data: Path) -> None:
    """Whose it is and what to set, from whatever would change something in it."""
    for directory in [data, *data.parents[:3]]:
        directory.chmod(directory.stat().st_mode | 0o555)
    for path in [data, *data.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    program = READ_ONLY.format(path=[entry for entry in sys.path if entry], series=SERIES)
    done = subprocess.run([sys.executable, "-c", program, str(data)], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done
    for line in lines:
        assert "belongs to user" in line
        assert "set SANDBOX_DATA_DIR to a directory of yours" in line
    for path in [data, *data.rglob("*")]:
        path.chmod(0o755)
