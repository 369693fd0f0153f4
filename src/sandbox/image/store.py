"""Where images are kept: by digest, published whole or not at all.

names/<name>          a file that holds the digest which the name stands for
objects/<digest>/     manifest.json, vmlinux, initrd, root.erofs
layers/<key>/         the cached slow halves, whose files the images hard-link
tmp/                  of the builder that holds build.lock
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sandbox.errors import ImageError
from sandbox.image.layer import file_record
from sandbox.image.lock import build_lock, is_held
from sandbox.image.manifest import ImageManifest
from sandbox.paths import make_directory
from sandbox.proc import mounts

MANIFEST, KERNEL, INITRD, ROOT = "manifest.json", "vmlinux", "initrd", "root.erofs"
_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")


@dataclass(frozen=True)
class Image:
    """A published image; its files never change."""

    name: str
    digest: str
    directory: Path
    manifest: ImageManifest

    @property
    def kernel(self) -> Path:
        """The uncompressed kernel."""
        return self.directory / KERNEL

    @property
    def initrd(self) -> Path:
        return self.directory / INITRD

    @property
    def root(self) -> Path:
        """The read-only root file system."""
        return self.directory / ROOT


@dataclass(frozen=True)
class Pruned:
    """What `ImageStore.prune` removed; bytes count only what no other image still uses."""

    removed: tuple[str, ...]
    freed_bytes: int


class ImageStore:
    """The images below one directory. Every method may be called by many processes at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layers = directory / "layers"
        self._names = directory / "names"
        self._objects = directory / "objects"
        self._tmp = directory / "tmp"

    def __repr__(self) -> str:
        return f"ImageStore({str(self.directory)!r}, {len(self.names())} names)"

    def names(self) -> dict[str, str]:
        """Return what each name stands for."""
        with suppress(FileNotFoundError):
            return {path.name: path.read_text().strip() for path in sorted(self._names.glob("[!.]*"))}
        return {}

    def find(self, name_or_digest: str) -> Image:
        """Return the image with that name, or whose digest starts so (6 characters or more). Raises `ImageError`."""
        if digest := self.names().get(name_or_digest):
            return self._load(digest)
        match = _PREFIX.fullmatch(name_or_digest)
        found = sorted(self._objects.glob(f"{match[1]}*")) if match else []
        if len(found) > 1:
            raise ImageError(f"{len(found)} images start with {name_or_digest}, expected one: give more characters")
        if not found:
            known = ", ".join(self.names()) or "none"
            raise ImageError(
                f"there is no image {name_or_digest!r} in {self.directory}, which has {known}: "
                f"run `sandbox image build {name_or_digest}`"
            )
        return self._load(found[0].name)

    def ls(self) -> list[Image]:
        """Return all images that can be read, by name, those without a name of their own too."""
        images = []
        for directory in self._objects.glob("*"):
            with suppress(ImageError):
                images.append(self._load(directory.name))
        return sorted(images, key=lambda image: (image.name, image.digest))

    def verify(self, image: Image) -> None:
        """Hash every file of the image anew. Raises `ImageError` at the first that is not as published."""
        for name, record in image.manifest.files.items():
            try:
                found = file_record(image.directory / name)
            except OSError as error:
                raise _damaged(image.name, f"{name}: {error.strerror}") from error
            if found != record:
                raise _damaged(image.name, f"{name} has sha256 {found.sha256}, expected {record.sha256}")

    def publish(self, work: Path, manifest: ImageManifest) -> Image:
        """Make `work`, a directory from `building()`, the image that its manifest describes, and give it its name.

        A reader sees the old image or the new one. The same image published again replaces a damaged copy only.
        """
        (work / MANIFEST).write_bytes(manifest.canonical())
        _make_durable(work)
        target = self._objects / manifest.digest
        make_directory(self._objects)
        if target.exists():
            try:
                self.verify(self._load(manifest.digest))
            except ImageError:
                target.rename(work.with_name(f"{work.name}.damaged"))
        if not target.exists():
            work.rename(target)
            _sync(self._objects)
        make_directory(self._names)
        pointer = self._tmp / f"name-{manifest.name}"
        pointer.write_text(f"{manifest.digest}\n")
        pointer.chmod(0o644)
        _sync(pointer)
        pointer.rename(self._names / manifest.name)
        _sync(self._names)
        return self._load(manifest.digest)

    def publish_layer(self, work: Path, key: str) -> Path:
        """Move a finished layer to its place, in place of one that is there."""
        _make_durable(work)
        make_directory(self.layers)
        target = self.layers / key
        if target.exists():
            target.rename(work.with_name(f"{work.name}.replaced"))
        work.rename(target)
        _sync(self.layers)
        return target

    def prune(self, in_use: Callable[[set[str]], set[str]] = lambda _: set()) -> Pruned:
        """Remove every image that has no name, and every layer that no named image was made from.

        `in_use` is called while nobody can build. It is given the digests that have a name, and returns further ones
        that stay. A running VM keeps the files which it has open, but a restore opens them anew.
        """
        removed, freed = [], 0
        with self.locked(lambda: None):
            named = set(self.names().values())
            manifests = [image.manifest for image in self.ls() if image.digest in named]
            sources = {key for manifest in manifests for key in (manifest.layer, manifest.kernel_layer)}
            for parent, keep in ((self._objects, named | in_use(named)), (self.layers, sources)):
                for directory in sorted(parent.glob("*")):
                    if directory.name not in keep:
                        freed += _remove(directory)
                        removed.append(f"{parent.name}/{directory.name}")
        return Pruned(tuple(removed), freed)

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of builders, after removing what dead ones have left."""
        make_directory(self._tmp)
        with build_lock(self.directory / "build.lock", waiting):
            for left in self._tmp.iterdir():
                _remove(left)
            yield

    def left_over(self) -> list[Path]:
        """Return what builds that were killed have left; nothing while somebody builds."""
        if not self._tmp.is_dir() or is_held(self.directory / "build.lock"):
            return []
        return sorted(self._tmp.iterdir())

    @contextmanager
    def building(self) -> Iterator[Path]:
        """Lend a directory on the store's file system; whatever is left of it at the end is removed."""
        work = Path(tempfile.mkdtemp(dir=self._tmp))
        try:
            yield work
        finally:
            _remove(work)

    def _load(self, digest: str) -> Image:
        directory = self._objects / digest
        try:
            data = (directory / MANIFEST).read_bytes()
            manifest = ImageManifest.model_validate_json(data)
        except OSError as error:
            raise _damaged(digest[:12], f"{MANIFEST}: {error.strerror}") from error
        except ValidationError as error:
            raise _damaged(digest[:12], f"{MANIFEST} is not one of this version of sandbox") from error
        if manifest.digest != digest:
            raise _damaged(manifest.name, f"its manifest has digest {manifest.digest[:12]}, expected {digest[:12]}")
        for name, record in manifest.files.items():
            try:
                size = (directory / name).stat().st_size
            except OSError as error:
                raise _damaged(manifest.name, f"{name}: {error.strerror}") from error
            if size != record.size:
                raise _damaged(manifest.name, f"{name} has {size} bytes, expected {record.size}")
        return Image(manifest.name, digest, directory, manifest)


def _damaged(name: str, what: str) -> ImageError:
    return ImageError(f"the image {name} is damaged: {what}: run `sandbox image build --fresh` for it")


def _make_durable(directory: Path) -> None:
    """Give the contents their final modes (QEMU may run as another user) and bring them to the disk."""
    for path in directory.iterdir():
        path.chmod(0o644)
        _sync(path)
    directory.chmod(0o755)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mounts_below(path: Path) -> list[str]:
    """Return what is mounted below `path`, where removing files would remove somebody else's."""
    return [mount.point for mount in mounts() if mount.point.startswith(f"{path.resolve()}/")]


def _remove(path: Path) -> int:
    """Remove a file or a tree; return how many bytes that freed."""
    if path.is_symlink() or not path.is_dir():
        with suppress(FileNotFoundError):
            path.unlink()
        return 0
    if mounted := _mounts_below(path):
        raise ImageError(f"{mounted[0]} is mounted in a directory to be removed: unmount it, then try again")
    statuses = [file.lstat() for file in path.rglob("*")]
    shutil.rmtree(path)
    # A hard-linked file goes with its last link, so it counts where its link count has come down to one.
    return sum(status.st_size for status in statuses if status.st_nlink == 1)
