"""A layer: the slow half of an image (root file system, kernel, modules), kept so that the other half is quick."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sandbox.errors import ImageError
from sandbox.image.kernel import builtin_modules, decompress, load_order, module_files, unsigned, vmlinux
from sandbox.image.manifest import FileName, FileRecord, PackageRecord, canonical_json, digest_of
from sandbox.image.recipe import Recipe
from sandbox.image.rootfs import KERNEL_PACKAGE, ROOT, build_rootfs
from sandbox.image.wheels import pack_wheels
from sandbox.paths import resource
from sandbox.setup.sources import Release, Source, debian_sources, with_backports

FORMAT = 2
ARCH = "amd64"
KERNEL = "vmlinux"
RECORD = "layer.json"
MODULES = ("virtio_blk", "erofs", "overlay", "zram")
REQUIRED = ("python3",)  # the agent's
_KERNEL_BACKPORTED_TO = 12  # the release whose own kernel lacks what snapshots of virtual machines need


class Layer(BaseModel):
    """What is in a layer's directory. `modules` are names in the order of loading, each a file `<name>.ko`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernel: str
    packages: tuple[PackageRecord, ...]
    pip: tuple[PackageRecord, ...]
    modules: tuple[str, ...]
    files: dict[FileName, FileRecord]


def layer_key(recipe: Recipe, release: Release) -> str:
    """Return the digest of what a layer is made from. The state of the mirror is not among it."""
    return digest_of(
        {
            "format": FORMAT,
            "arch": ARCH,
            "suite": release.codename,
            "packages": _packages(recipe),
            "pip": sorted(recipe.pip),
            "modules": MODULES,
            "customize": hashlib.sha256((resource("images") / "customize").read_bytes()).hexdigest(),
            **({"sudo": True} if recipe.sudo else {}),
        }
    )


def build_layer(recipe: Recipe, release: Release, work: Path, target: Path) -> Layer:
    """Build the layer into the empty directory `target`, with `work` for what is temporary."""
    sources, kernel_suite = kernel_sources(release)
    wheels, pip = pack_wheels(recipe.pip, release.codename, work) if recipe.pip else (None, ())
    packages = build_rootfs(_packages(recipe), sources, kernel_suite, wheels, work, sudo=recipe.sudo)
    shutil.move(work / ROOT, target / ROOT)
    version, modules = unpack_kernel(work / KERNEL_PACKAGE, work / "kernel", target)
    files = {path.name: file_record(path) for path in sorted(target.iterdir())}
    layer = Layer(kernel=version, packages=packages, pip=pip, modules=tuple(modules), files=files)
    (target / RECORD).write_bytes(canonical_json(layer.model_dump(mode="json")))
    return layer


def kernel_sources(release: Release) -> tuple[tuple[Source, ...], str]:
    """Return the host's apt sources and, of their suites, the one that the guest's kernel comes from."""
    sources = debian_sources(release)
    if release.version != _KERNEL_BACKPORTED_TO:
        return sources, release.codename
    return with_backports(sources, release), f"{release.codename}-backports"


def read_layer(directory: Path) -> Layer | None:
    """Return the layer in `directory`, or None when there is none that is whole."""
    try:
        layer = Layer.model_validate_json((directory / RECORD).read_bytes())
        whole = all((directory / name).stat().st_size == record.size for name, record in layer.files.items())
    except (OSError, ValidationError):
        return None
    return layer if whole else None


def unpack_kernel(package: Path, work: Path, target: Path) -> tuple[str, list[str]]:
    """Put `vmlinux` and the needed modules of a kernel package into `target`; return the version and their order."""
    try:
        subprocess.run(
            ["dpkg-deb", "--extract", package, work], stdin=subprocess.DEVNULL, capture_output=True, check=True
        )
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()
        raise ImageError(f"the kernel's package cannot be unpacked: {reason}: build the image again") from error
    images = sorted((work / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise ImageError(f"the kernel's package has {len(images)} kernels, expected one: report this as a defect")
    version = images[0].name.removeprefix("vmlinuz-")
    tree = next(tree for tree in (work / "usr/lib/modules", work / "lib/modules") if tree.is_dir()) / version
    paths = module_files(tree)

    def module(name: str) -> bytes:
        if name not in paths:
            raise ImageError(f"kernel {version} has no module {name}, expected Debian's cloud kernel 6.1 or newer")
        return decompress(paths[name].read_bytes())

    order = load_order(MODULES, module, builtin_modules(tree))
    (target / KERNEL).write_bytes(vmlinux(images[0].read_bytes()))
    for name in order:
        (target / f"{name}.ko").write_bytes(unsigned(module(name)))
    return version, order


def file_record(path: Path) -> FileRecord:
    """Hash a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(size=path.stat().st_size, sha256=digest)


def _packages(recipe: Recipe) -> list[str]:
    return sorted({*recipe.packages, *REQUIRED, *(("sudo",) if recipe.sudo else ())})
