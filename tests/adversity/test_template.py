"""Templates that are damaged, stale, or wanted by many at once."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from sandbox.config import HostConfig, TemplateConfig
from sandbox.errors import TemplateError
from sandbox.image.build import ensure_image
from sandbox.image.recipe import load_recipe
from sandbox.image.store import ImageStore
from sandbox.template.bake import check_clock
from sandbox.template.lint import RULES, LintReport
from sandbox.template.manifest import MEMORY, STATE, FileDigest, Requirement, TemplateManifest
from sandbox.template.series import Series
from sandbox.template.store import TemplateStore
from sandbox.template.template import Template
from sandbox.vm import VM

REQUIREMENT = Requirement(
    image="i",
    memory_mib=256,
    vcpus=1,
    qemu_version="10",
    libvirt_version="9.0.0",
    machine_type="q35",
    accelerator="tcg",
    cpu="max",
    command_line="quiet",
)
FLIPS = 1000


@pytest.fixture
def baked(tmp_path: Path) -> Path:
    """A directory with a memory file (data, a hole, data), a state file and their manifest."""
    source = random.Random(1)
    with (tmp_path / MEMORY).open("wb") as file:
        file.write(source.randbytes(300_000))
        file.seek(4_000_000)
        file.write(source.randbytes(100_000))
        file.truncate(5_000_000)
    (tmp_path / STATE).write_bytes(source.randbytes(50_000))
    manifest = TemplateManifest(
        requirement=REQUIREMENT,
        series="default-256m-1c",
        generation=1,
        lint=LintReport(rules=tuple(RULES)),
        agent=1,
        created="2026-01-01T00:00:00+00:00",
        freeze_seconds=0.1,
        files={name: FileDigest.of(tmp_path / name) for name in (MEMORY, STATE)},
    )
    manifest.save(tmp_path)
    return tmp_path


def _flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def test_every_flipped_bit_is_found(baked: Path) -> None:
    """1,000 single-bit errors at random places of the memory and the state: 1,000 are refused, and none without one."""
    manifest = TemplateManifest.load(baked)
    assert manifest is not None
    manifest.verify(baked, REQUIREMENT)
    source = random.Random(2)
    found = 0
    for _ in range(FLIPS):
        name = source.choice((MEMORY, STATE))
        offset = source.randrange(300_000 if name == MEMORY else 50_000)
        bit = source.randrange(8)
        _flip(baked / name, offset, bit)
        with pytest.raises(TemplateError, match="differs"):
            manifest.verify(baked, REQUIREMENT)
        found += 1
        _flip(baked / name, offset, bit)
    assert found == FLIPS
    manifest.verify(baked, REQUIREMENT)


def test_holes_and_zeros_are_equal(baked: Path, tmp_path: Path) -> None:
    """A copy without holes passes; zeros where there was data, and data elsewhere, do not."""
    manifest = TemplateManifest.load(baked)
    assert manifest is not None
    content = (baked / MEMORY).read_bytes()
    assert (baked / MEMORY).stat().st_blocks * 512 < len(content), "the control: there are holes"
    for other, is_equal in (
        (content, True),
        (content[:4_000_000] + bytes(1_000_000), False),
        (content[:300_000] + content[4_000_000:4_100_000] + bytes(4_600_000), False),
        (content[:4_000_000] + bytes(65_536) + content[4_000_000:-65_536], False),
    ):
        (baked / MEMORY).write_bytes(other)
        assert (FileDigest.of(baked / MEMORY) == manifest.files[MEMORY]) is is_equal
    (tmp_path / "empty").touch()
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(5_000_000)
    (tmp_path / "zeros").write_bytes(bytes(5_000_000))
    empty, hole, zeros = (FileDigest.of(tmp_path / name) for name in ("empty", "hole", "zeros"))
    assert hole == zeros != empty


@pytest.mark.parametrize("name", [MEMORY, STATE])
def test_truncated_longer_and_missing_files_are_refused(baked: Path, name: str) -> None:
    """A file of another length, and one that is not there."""
    manifest = TemplateManifest.load(baked)
    assert manifest is not None
    size = (baked / name).stat().st_size
    for length in (size - 1, size + 1, 0):
        os.truncate(baked / name, length)
        with pytest.raises(TemplateError, match="differs"):
            manifest.verify(baked, REQUIREMENT)
    (baked / name).unlink()
    with pytest.raises(TemplateError, match="cannot be read"):
        manifest.verify(baked, REQUIREMENT)


@pytest.mark.parametrize("field", [name for name in Requirement.model_fields if name != "format"])
def test_every_part_of_the_environment_counts(baked: Path, field: str) -> None:
    """Another QEMU, machine, processor, image, size, device list or command line: another key, and refused by name."""
    manifest = TemplateManifest.load(baked)
    assert manifest is not None
    value = getattr(REQUIREMENT, field)
    other = REQUIREMENT.model_copy(update={field: value + 1 if isinstance(value, int) else f"{value}x"})
    assert other.key != REQUIREMENT.key
    with pytest.raises(TemplateError, match=field):
        manifest.verify(baked, other)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"requirement": 1}'])
def test_damaged_manifest_is_told_from_a_missing_one(baked: Path, text: str) -> None:
    """Garbage is an error, absence is an answer."""
    (baked / "manifest.json").write_text(text)
    with pytest.raises(TemplateError, match="damaged"):
        TemplateManifest.load(baked)
    (baked / "manifest.json").unlink()
    assert TemplateManifest.load(baked) is None


@pytest.fixture
def private_data(template: Template, host_config: HostConfig) -> Path:  # type: ignore[misc]
    """A data directory of its own that shares the built images."""
    data = host_config.data_dir / f"test-{os.getpid()}"
    data.mkdir(mode=0o755)
    (data / "images").symlink_to(host_config.paths.images)
    (data / "host").symlink_to(host_config.data_dir / "host")
    yield data
    shutil.rmtree(data)


def _start(data: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sandbox", "exec", "-c", "print('ran')"]
    environment = {**os.environ, "SANDBOX_DATA_DIR": str(data)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_one_of_many_bakes_and_a_damaged_template_is_baked_anew(private_data: Path) -> None:
    """Three processes that find no template bake one; when its memory is damaged the next run replaces it."""
    processes = [_start(private_data) for _ in range(3)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [output for output, _ in outputs] == [b"ran\n"] * 3, outputs
    assert b"".join(errors for _, errors in outputs).count(b"baking the template") == 1

    (memory,) = private_data.glob(f"templates/*/{MEMORY}")
    memory.chmod(0o644)
    _flip(memory, 1 << 20, 0)
    output, errors = _start(private_data).communicate(timeout=120)
    assert output == b"ran\n"
    assert b"template_refused" in errors
    assert b"baking the template" in errors

    output, errors = _start(private_data).communicate(timeout=120)
    assert (output, errors) == (b"ran\n", b"")
    assert [path.name for path in private_data.glob("templates/.*")] == []


async def test_a_clock_that_went_wrong_is_no_base_for_clones(vm: VM) -> None:
    """The right time passes; three seconds of it in either direction do not."""
    await check_clock(vm)
    for seconds in (3, -6):
        (await vm.exec(f"date -s '{seconds} seconds'", user="root")).check()
        with pytest.raises(TemplateError, match="clock went wrong"):
            await check_clock(vm)


@pytest.fixture
def recipes(template: Template, host_config: HostConfig, tmp_path: Path) -> Iterator[list[Path]]:
    """The files of two recipes of one name and other content; what is built and baked from them is removed."""
    packages = list(load_recipe("default").packages)
    name, paths = f"test-recipes-{os.getpid()}", []
    for language in ("python", "bash"):
        path = tmp_path / language / f"{name}.toml"
        path.parent.mkdir()
        path.write_text(f"packages = {packages}\nlanguages = ['{language}']\n")
        paths.append(path)
    yield paths
    store, templates = ImageStore(host_config.paths.images), TemplateStore(host_config.paths.templates)
    for stored in templates.ls():
        if stored.manifest.series.startswith(name):
            shutil.rmtree(stored.directory)
            templates.lock(stored.manifest.requirement).unlink(missing_ok=True)
    for image in store.ls():
        if image.name == name:
            store.place_of_inputs(image.manifest.inputs).unlink(missing_ok=True)
            shutil.rmtree(image.directory)
    (store.directory / "names" / name).unlink()


async def test_a_template_follows_its_own_recipe_only(recipes: list[Path], host_config: HostConfig) -> None:
    """Another project's recipe of the same name has other images and another series; an edit of ours is followed."""
    ours, theirs = recipes
    store = ImageStore(host_config.paths.images)
    template = await Template.ensure(TemplateConfig(image=str(ours), memory_mib=168))
    their_image = await run_sync(ensure_image, str(theirs), store, lambda _: None)
    assert await run_sync(store.find, ours.stem) == their_image, "the control: it bears the name now"
    assert await template.drift() is None
    their_series = await Series.of(TemplateConfig(image=str(theirs), memory_mib=168), host_config, Template)
    assert their_series.name != template.manifest.series
    assert their_series.name.partition("@")[0] == template.manifest.series.partition("@")[0]
    assert (await Template.ensure(TemplateConfig(image=str(ours), memory_mib=168))).generation == 1
    ours.write_text(ours.read_text().replace("'python']", "'python', 'bash']"))
    assert await template.drift() is None, "a look does not build"
    await run_sync(ensure_image, str(ours), store, lambda _: None)
    drift = await template.drift()
    assert drift is not None
    assert drift.reasons == ("image",)
