"""Where images are kept: by digest, published whole or not at all.

names/<name>          the digest that the name stands for: of the image that was built last under this name
inputs/<inputs>       the digest of the image that was built last from exactly these inputs, and the recipe's file
objects/<digest>/     manifest.json, vmlinux, initrd, root.erofs
layers/<key>/         the cached slow halves, whose files the images hard-link
tmp/                  of the builder that holds build.lock
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sandbox.errors import ImageError
from sandbox.image.layer import file_record
from sandbox.image.lock import build_lock, is_held
from sandbox.image.manifest import ImageManifest
from sandbox.image.pointer import DIGEST, NAME, Fault, Pointer, entries, may_exist, read_pointer
from sandbox.image.removal import remove_tree
from sandbox.paths import make_directory
from sandbox.stored import read_stored, refused, write_stored

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
        self._inputs = directory / "inputs"
        self._objects = directory / "objects"
        self._tmp = directory / "tmp"

    def __repr__(self) -> str:
        return f"ImageStore({str(self.directory)!r}, {len(self.names())} names)"

    def names(self) -> dict[str, str]:
        """Return what each name stands for. Damaged ones are left out, see `faults`."""
        found = {path.name: read_pointer(path, NAME) for path in entries(self._names)}
        return {name: pointer.digest for name, pointer in found.items() if isinstance(pointer, Pointer)}

    def find(self, name_or_digest: str) -> Image:
        """Return the image with that name, or whose digest starts so (6 characters or more). Raises `ImageError`."""
        path = self.place_of_name(name_or_digest)
        if path is not None and (pointer := read_pointer(path, NAME)) is not None:
            if isinstance(pointer, Fault):
                raise ImageError(pointer.said)
            return self._load(pointer.digest)
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

    def place_of_name(self, name: str) -> Path | None:
        """Return the file that tells what this name stands for; None if there can be no such name."""
        return self._names / name if NAME.fullmatch(name) else None

    def place_of_inputs(self, inputs: str) -> Path:
        """Return the file that tells which image was built from these inputs."""
        return self._inputs / inputs

    def built_from(self, inputs: str) -> Image | None:
        """Return the image that was built last from exactly these inputs; None if there is none that can be read."""
        if isinstance(pointer := read_pointer(self.place_of_inputs(inputs), DIGEST), Pointer):
            with suppress(ImageError):
                image = self._load(pointer.digest)
                return image if image.manifest.inputs == inputs else None
        return None

    def ls(self) -> list[Image]:
        """Return all images that can be read, by name, those without a name of their own too."""
        images = []
        for directory in entries(self._objects):
            with suppress(ImageError):
                images.append(self._load(directory.name))
        return sorted(images, key=lambda image: (image.name, image.digest))

    def digests(self) -> set[str]:
        """Return the digests of all images, damaged ones too."""
        return {directory.name for directory in entries(self._objects)}

    def origins(self) -> dict[str, str]:
        """Return, by digest, the recipe's file that an image was built from last."""
        return {pointer.digest: pointer.origin for pointer, _ in self._pointers()}

    def wanted(self) -> set[str]:
        """Return the digests of the images that somebody may ask for: by a name, or as the last one of a recipe's file.

        A recipe's file whose name another one has taken keeps its image, as long as the file is there.
        """
        wanted, latest = set(self.names().values()), dict[tuple[str, str], tuple[int, str]]()
        names = {image.digest: image.name for image in self.ls()}
        for pointer, modified in self._pointers():
            if pointer.origin and may_exist(pointer.origin) and (name := names.get(pointer.digest)):
                key, found = (pointer.origin, name), (modified, pointer.digest)
                latest[key] = max(found, latest.get(key, found))
        return wanted | {digest for _, digest in latest.values()}

    def faults(self) -> list[Fault]:
        """Return what is damaged, and what lies in the store without belonging there."""
        found = [
            pointer
            for directory, pattern in ((self._names, NAME), (self._inputs, DIGEST))
            for path in entries(directory)
            if isinstance(pointer := read_pointer(path, pattern), Fault)
        ]
        for directory in entries(self._objects):
            try:
                self._load(directory.name)
            except ImageError as error:
                found.append(Fault(directory, str(error)))
        odd = [path for path in entries(self.layers) if not DIGEST.fullmatch(path.name)]
        return [*found, *(Fault(path, f"{path} is no layer of an image: remove it") for path in odd)]

    def _pointers(self) -> Iterator[tuple[Pointer, int]]:
        """Yield what was built from which inputs, and when."""
        for path in entries(self._inputs):
            with suppress(FileNotFoundError):  # removed meanwhile
                if isinstance(pointer := read_pointer(path, DIGEST), Pointer):
                    yield pointer, path.stat().st_mtime_ns

    def verify(self, image: Image) -> None:
        """Hash every file of the image anew. Raises `ImageError` at the first that is not as published."""
        for name, record in image.manifest.files.items():
            try:
                found = file_record(image.directory / name)
            except OSError as error:
                raise _damaged(image.name, f"{name}: {error.strerror}") from error
            if found != record:
                raise _damaged(image.name, f"{name} has sha256 {found.sha256}, expected {record.sha256}")

    def publish(self, work: Path, manifest: ImageManifest, origin: str = "") -> Image:
        """Make `work`, a directory from `building()`, the image that its manifest describes, and give it its name.

        It becomes the image of its inputs, too; `origin` is the recipe's file. A reader sees the old image or the new
        one. The same image published again replaces a damaged copy only.
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
        self._point(self.place_of_inputs(manifest.inputs), f"{manifest.digest}\n{origin}\n", work)
        self._point(self._names / manifest.name, f"{manifest.digest}\n", work)
        return self._load(manifest.digest)

    def _point(self, path: Path, text: str, work: Path) -> None:
        """Write a pointer, in the place of whatever is there."""
        make_directory(path.parent)
        if path.is_dir() and not path.is_symlink():
            path.rename(work.with_name(f"{work.name}.{path.parent.name}"))
        write_stored(path, os.fsencode(text))
        _sync(path.parent)

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
        """Remove every image that is not `wanted`, and every layer that no wanted image was made from.

        `in_use` is called while nobody can build. It is given the digests that are wanted, and returns further ones
        that stay. A running VM keeps the files which it has open, but a restore opens them anew. Where a name is
        damaged, the images that bear it stay; where a manifest is, the layers. What is no image and no layer stays,
        too; `faults` tells of it.
        Raises `ImageError`, also where the store belongs to another user.
        """
        removed: list[str] = []
        with self.locked(lambda: None):
            try:
                freed = self._prune(in_use, removed)
            except OSError as error:
                raise ImageError(f"images cannot be removed: {refused(error, self.directory)}") from error
        return Pruned(tuple(removed), freed)

    def _prune(self, in_use: Callable[[set[str]], set[str]], removed: list[str]) -> int:
        images = self.ls()
        damaged = {path.name for path in entries(self._names) if isinstance(read_pointer(path, NAME), Fault)}
        wanted = self.wanted() | {image.digest for image in images if image.name in damaged}
        kept = wanted | in_use(wanted)
        sources = {key for image in images if image.digest in wanted for key in _layers(image.manifest)}
        if (self.digests() & kept) - {image.digest for image in images}:  # nothing tells what those were made from
            sources |= {layer.name for layer in entries(self.layers)}
        freed = 0
        for parent, keep in ((self._objects, kept), (self.layers, sources)):
            for directory in entries(parent):
                if directory.name not in keep and DIGEST.fullmatch(directory.name):
                    freed += remove_tree(directory)
                    removed.append(f"{parent.name}/{directory.name}")
        for path in entries(self._inputs):
            pointer = read_pointer(path, DIGEST)
            if isinstance(pointer, Pointer) and not (self._objects / pointer.digest).exists():
                remove_tree(path)
        return freed

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of builders, after removing what dead ones have left. Raises `ImageError` if that fails."""
        with ExitStack() as stack:
            try:
                make_directory(self._tmp)
                stack.enter_context(build_lock(self.directory / "build.lock", waiting))
                for left in self._tmp.iterdir():
                    remove_tree(left)
            except OSError as error:
                raise ImageError(f"images cannot be changed: {refused(error, self.directory)}") from error
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
            remove_tree(work)

    def _load(self, digest: str) -> Image:
        directory = self._objects / digest
        try:
            data = read_stored(directory / MANIFEST)
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


def _layers(manifest: ImageManifest) -> tuple[str, ...]:
    """Return the keys of the layers that an image was made from."""
    return (manifest.layer,) if manifest.kernel_layer is None else (manifest.layer, manifest.kernel_layer)


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
