"""Publishing, finding, verifying and pruning images."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sandbox.errors import ImageError
from sandbox.image.lock import is_held
from sandbox.image.store import ImageStore
from tests.stored import publish_image as publish


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "data" / "images")


def test_an_image_is_found_by_name_and_digest(store: ImageStore) -> None:
    """A name, a whole digest and the beginning of one lead to the same image."""
    image = publish(store, "default", b"one")
    assert store.find("default") == image
    assert store.find(image.digest) == image
    assert store.find(f"sha256:{image.digest[:12]}") == image
    assert image.kernel.read_bytes() == b"one"
    assert image.root.name == "root.erofs"


@pytest.mark.parametrize("name", ["nope", "abcdef", "../../etc", "", "*"])
def test_what_is_not_there_is_an_error(store: ImageStore, name: str) -> None:
    """The message names what there is and the command that makes it."""
    publish(store, "default", b"one")
    with pytest.raises(ImageError, match="has default: run `sandbox image build"):
        store.find(name)


def test_an_empty_store(store: ImageStore) -> None:
    """Looking makes nothing."""
    assert store.ls() == []
    with pytest.raises(ImageError):
        store.find("default")
    assert not store.directory.exists()


def test_other_users_can_read_it(store: ImageStore) -> None:
    """QEMU may run as another user, whatever the builder's umask is."""
    before = os.umask(0o077)
    try:
        image = publish(store, "default", b"one")
    finally:
        os.umask(before)
    for directory in (image.directory, image.directory.parent, store.directory, store.directory.parent):
        assert directory.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in image.directory.iterdir()} == {0o644}


def test_a_newer_image_takes_the_name(store: ImageStore) -> None:
    """The older one stays until it is pruned."""
    old, new = publish(store, "default", b"one"), publish(store, "default", b"two")
    assert store.find("default") == new
    assert {image.digest for image in store.ls()} == {old.digest, new.digest}


def test_the_same_image_twice(store: ImageStore) -> None:
    """Publishing it again leaves it where it is."""
    image = publish(store, "default", b"one")
    inode = image.initrd.stat().st_ino
    assert publish(store, "default", b"one") == image
    assert image.initrd.stat().st_ino == inode


def test_changed_bytes_are_noticed(store: ImageStore) -> None:
    """Hashing finds what sizes do not tell, and publishing again repairs it."""
    image = publish(store, "default", b"one")
    store.verify(image)
    image.initrd.write_bytes(b"eno")
    assert store.find("default") == image
    with pytest.raises(ImageError, match="initrd has sha256"):
        store.verify(image)
    store.verify(publish(store, "default", b"one"))


@pytest.mark.parametrize("name", ["initrd", "manifest.json"])
def test_truncated_and_lost_files_are_noticed_when_loading(store: ImageStore, name: str) -> None:
    """Neither is an image any more."""
    image = publish(store, "default", b"one")
    (image.directory / name).write_bytes(b"{}")
    with pytest.raises(ImageError, match="damaged"):
        store.find("default")
    (image.directory / name).unlink()
    with pytest.raises(ImageError, match="damaged"):
        store.find("default")
    assert store.ls() == []


def test_prune_keeps_what_has_a_name(store: ImageStore) -> None:
    """Replaced images and the layers that only they used go; freed bytes count files whose last link went."""
    publish(store, "default", b"one", layer="1" * 64)
    new = publish(store, "default", b"two", layer="2" * 64)
    pruned = store.prune()
    assert len(pruned.removed) == 2
    assert pruned.freed_bytes > len("root of ") + 64
    assert store.ls() == [new]
    assert [path.name for path in store.layers.iterdir()] == ["2" * 64]
    store.verify(new)
    assert store.prune().removed == ()


def test_prune_asks_what_else_is_in_use_while_nobody_can_build(store: ImageStore) -> None:
    """What is in use without a name stays; its layer goes, and it keeps the files."""
    old = publish(store, "default", b"one", layer="1" * 64)
    new = publish(store, "default", b"two", layer="2" * 64)
    was_held = []

    def in_use(named: set[str]) -> set[str]:
        was_held.append(is_held(store.directory / "build.lock"))
        assert named == {new.digest}
        return {old.digest}

    assert store.prune(in_use).removed == (f"layers/{'1' * 64}",)
    assert was_held == [True]
    assert store.ls() == sorted([old, new], key=lambda image: image.digest)
    store.verify(old)


def test_prune_keeps_the_kernel_that_an_image_was_given(store: ImageStore) -> None:
    """A kernel's layer stays while an image with a name was made with it."""
    for kernel in ("1" * 64, "2" * 64):
        publish(store, "other", b"one", layer=kernel)
    image = publish(store, "default", b"two", layer="3" * 64, kernel_layer="1" * 64)
    publish(store, "other", b"two", layer="3" * 64)
    store.prune()
    assert {path.name for path in store.layers.iterdir()} == {"1" * 64, "3" * 64}
    assert store.find(image.digest).manifest.kernel_layer == "1" * 64


def test_a_failed_build_leaves_nothing(store: ImageStore) -> None:
    """Whatever was in its directory goes with it."""

    def build() -> None:
        with store.locked(lambda: None), store.building() as work:
            (work / "half").mkdir()
            raise RuntimeError("the mirror fell over")

    with pytest.raises(RuntimeError):
        build()
    assert list((store.directory / "tmp").iterdir()) == []
    assert store.ls() == []


def test_a_killed_builder_frees_the_lock_and_its_rests_are_removed(store: ImageStore) -> None:
    """The next builder finds the lock free and cleans up."""
    program = (
        "import os, sys; from pathlib import Path; from sandbox.image.store import ImageStore\n"
        "with ImageStore(Path(sys.argv[1])).locked(lambda: None):\n"
        "    (Path(sys.argv[1]) / 'tmp/rest').mkdir(); os.kill(os.getpid(), 9)\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    subprocess.run(
        [sys.executable, "-c", program, str(store.directory)], env={**os.environ, "PYTHONPATH": source}, check=False
    )
    assert (store.directory / "tmp/rest").exists()
    with store.locked(lambda: pytest.fail("the lock is still held")):
        assert list((store.directory / "tmp").iterdir()) == []


def test_builders_wait_for_each_other(store: ImageStore) -> None:
    """The second says that it waits, and goes on when the first has ended."""
    waiting, entered = threading.Event(), threading.Event()

    def second() -> None:
        with store.locked(waiting.set):
            entered.set()

    with store.locked(lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        assert not entered.is_set()
    assert entered.wait(10)
    thread.join()
