"""A pool that runs while what is stored on the disk is damaged, and the commands that meet it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.config import HostConfig
from sandbox.image.store import ImageStore
from sandbox.template.store import TemplateStore
from sandbox.template.template import Template
from tests.conftest import PROGRAMS
from tests.damage import damage

COMMANDS = (["top", "--once"], ["image", "ls"], ["template", "ls"], ["image", "prune"], ["doctor"])


@pytest.fixture
def data(template: Template, host_config: HostConfig) -> Iterator[Path]:
    """A data directory of its own, with the built images."""
    data, images = host_config.data_dir / f"damaged-{os.getpid()}", host_config.paths.images
    data.mkdir(mode=0o755)
    shutil.copytree(images / "names", data / "images/names")
    (data / "images/tmp").mkdir()
    image = template.manifest.requirement.image
    shutil.copytree(images / "objects" / image, data / "images/objects" / image, copy_function=_link_or_copy)
    shutil.copytree(images / "layers", data / "images/layers", copy_function=os.link)
    shutil.copytree(host_config.data_dir / "host", data / "host")
    inputs = ImageStore(images).find(image).manifest.inputs
    (data / "images/inputs").mkdir()
    (data / "images/inputs" / inputs).write_text(f"{image}\n")
    yield data
    shutil.rmtree(data)


def _link_or_copy(source: str, target: str) -> None:
    shutil.copy2(source, target) if source.endswith(".json") else os.link(source, target)


def _sandbox(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandbox", *arguments]
    environment = {**os.environ, "SANDBOX_DATA_DIR": str(data)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("kind", ["no text", "truncated", "a directory"])
def test_a_pool_outlives_damage_to_all_that_is_stored(data: Path, kind: str) -> None:
    """Its lease and its claims go on; every command says what is wrong, or heals it, and the next run is quiet."""
    environment = {**os.environ, "SANDBOX_DATA_DIR": str(data)}
    command = [sys.executable, str(PROGRAMS / "host_keeps_pool.py")]
    with subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None

        def assert_alive() -> None:
            assert keeper.stdin is not None
            assert keeper.stdout is not None
            keeper.stdin.write("\n")
            keeper.stdin.flush()
            assert keeper.stdout.readline() == "alive\n"

        assert keeper.stdout.readline() == "open\n"
        assert_alive()
        store = TemplateStore(data / "templates")
        (stored,) = store.ls()
        store.pin(stored.manifest.series, stored)
        files = [*data.glob("images/names/*"), *data.glob("images/inputs/*"), *data.glob("images/objects/*/*.json")]
        files += [stored.directory / "manifest.json", data / "templates/pins" / stored.manifest.series]
        files += [] if kind == "a directory" else [data / f"host/host-{os.geteuid()}.json"]
        assert len(files) > 4
        for path in files:
            damage(path, kind)
        (data / "images/names" / os.fsdecode(b"caf\xe9")).write_bytes(b"\xff")
        assert_alive()
        for arguments in COMMANDS:
            done = _sandbox(data, *arguments)
            assert (done.returncode, "internal error" in done.stderr) == (0, False), done
            assert_alive()
        done = _sandbox(data, "exec", "--memory", "160M", "-c", "print(6 * 7)")
        assert (done.returncode, done.stdout) == (0, "42\n"), done
        done = _sandbox(data, "template", "rollback", "--undo", stored.manifest.series.partition("@")[0])
        assert_alive()
        done = _sandbox(data, "exec", "--memory", "160M", "-c", "print(6 * 7)")
        assert (done.returncode, done.stdout) == (0, "42\n"), done
        assert "image" not in done.stderr, "it was healed by the run before"
        assert_alive()
        keeper.stdin.close()
        assert keeper.wait(30) == 0
