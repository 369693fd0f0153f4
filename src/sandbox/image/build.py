"""From a recipe to a published image."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sandbox import wire
from sandbox.errors import ImageError
from sandbox.image.bytecode import compile_agent
from sandbox.image.initramfs import initramfs
from sandbox.image.kernel_build import KERNEL_BYTES, build_kernel, kernel_key
from sandbox.image.layer import ARCH, KERNEL, Layer, build_layer, file_record, layer_key, read_layer
from sandbox.image.manifest import ImageManifest, digest_of
from sandbox.image.recipe import Recipe, is_recipe, known_recipes, load_recipe
from sandbox.image.store import INITRD, ROOT, Image, ImageStore
from sandbox.image.wanted import check_wanted
from sandbox.paths import resource
from sandbox.setup.sources import Release, host_release

Progress = Callable[[str], None]

FORMAT = 1
_BUILD_BYTES = 1 << 30
_BUSYBOX = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
SHARED = ("wire.py", "message.py")  # by host and guest


def image_of(name: str, store: ImageStore, progress: Progress) -> Image:
    """Return the image of a recipe, built if need be, or the built image whose name or digest is given. Blocking."""
    if is_recipe(name):
        return ensure_image(name, store, progress)
    try:
        return store.find(name)
    except ImageError as error:
        known = ", ".join(known_recipes())
        raise ImageError(f"there is no recipe and no built image {name!r}; recipes are {known}") from error


def ensure_image(name: str, store: ImageStore, progress: Progress) -> Image:
    """Return the image of the recipe `name` (or of a `.toml` path), built only if what it is made from has changed.

    What is compared is the recipe, the Debian release, the agent and the builder; packages that the mirror has in a
    newer version are taken by `build_image(…, fresh=True)` only. Blocking. If it fails, nothing half-made is left.
    """
    recipe = load_recipe(name)
    release = host_release()
    return current_image(recipe, store) or _build(recipe, release, store, progress, fresh=False, force=False)


def build_image(recipe: Recipe, store: ImageStore, progress: Progress, *, fresh: bool = False) -> Image:
    """Build and publish an image and give it the recipe's name.

    With `fresh`, the root file system is made anew from the mirror, else a cached layer of the same packages is used.
    Blocking. If it fails, nothing half-made is left, and the name stands for what it stood for before.
    """
    return _build(recipe, host_release(), store, progress, fresh=fresh, force=True)


def is_current(name: str, store: ImageStore) -> bool:
    """Return whether `ensure_image` would find the image of this recipe built and up to date."""
    return current_image(load_recipe(name), store) is not None


def current_image(recipe: Recipe, store: ImageStore) -> Image | None:
    """Return the image with the recipe's name if it is up to date, that is, if a build would make it again."""
    if recipe.name not in store.names():
        return None
    try:
        image = store.find(recipe.name)
    except ImageError:  # damaged, or of another version: a build replaces it
        return None
    return image if image.manifest.inputs == inputs_digest(recipe, host_release()) else None


def agent_sources() -> dict[str, bytes]:
    """Return the agent's files by name, the shared protocol among them.

    For development only, `SANDBOX_GUEST_AGENT` names another directory that they come from.
    """
    directory = Path(os.environ.get("SANDBOX_GUEST_AGENT") or resource("guest_agent"))
    sources = {path.name: path.read_bytes() for path in sorted(directory.glob("*.py"))}
    for name in SHARED:
        sources[name] = (Path(wire.__file__).parent / name).read_bytes()
    return sources


def inputs_digest(recipe: Recipe, release: Release) -> str:
    """Return the digest of all that an image is made from."""
    return digest_of(
        {
            "format": FORMAT,
            "recipe": recipe.model_dump(mode="json"),
            "layer": layer_key(recipe, release),
            "agent": _agent_digest(agent_sources()),
            "bytecode": 1,
            "init": hashlib.sha256(_init()).hexdigest(),
            "busybox": hashlib.sha256(_busybox()).hexdigest(),
            **({"kernel": kernel_key(release)} if recipe.kernel == "minimal" else {}),
        }
    )


def _build(
    recipe: Recipe, release: Release, store: ImageStore, progress: Progress, *, fresh: bool, force: bool
) -> Image:
    if platform.machine() != "x86_64":
        raise ImageError(f"this host is {platform.machine()}, expected x86_64: images exist for that machine only")
    begin = time.monotonic()

    def say(text: str) -> None:
        check_wanted()
        progress(f"[{time.monotonic() - begin:5.1f} s] {text}")

    try:
        return _build_locked(recipe, release, store, say, fresh=fresh, force=force)
    except OSError as error:
        raise ImageError(
            f"the image {recipe.name} could not be built: {error}: expected a writable {store.directory} "
            "with some 500 MB of free space"
        ) from error


def _build_locked(
    recipe: Recipe, release: Release, store: ImageStore, say: Progress, *, fresh: bool, force: bool
) -> Image:
    with store.locked(lambda: say("waiting for another build to end")):
        if not force and (image := current_image(recipe, store)):
            return image

        def layer_of(key: str, what: str, size: int, build: Callable[[Path, Path], Layer]) -> Layer:
            found = None if fresh else read_layer(store.layers / key)
            return found or _build_layer(store, key, size, partial(say, f"{recipe.name}: {what}"), build)

        what = f"Debian {release.codename} with {len(recipe.packages)} packages, half a minute or so"
        layer = layer_of(layer_key(recipe, release), what, _BUILD_BYTES, partial(build_layer, recipe, release))
        kernel = None
        if recipe.kernel == "minimal":
            what = "the minimal kernel is compiled, some minutes"
            kernel = layer_of(kernel_key(release), what, KERNEL_BYTES, partial(build_kernel, release))
        say(f"{recipe.name}: initramfs with the agent")
        with store.building() as work:
            image = _assemble(recipe, release, store, layer, kernel, work)
        say(f"{recipe.name}: {image.digest[:12]}, kernel {image.manifest.kernel}, {len(layer.packages)} packages")
        return image


def _build_layer(
    store: ImageStore, key: str, size: int, begin: Callable[[], None], build: Callable[[Path, Path], Layer]
) -> Layer:
    if (free := shutil.disk_usage(store.directory).free) < size:
        raise ImageError(
            f"building an image needs {size >> 20} MiB in {store.directory}, {free >> 20} are free: "
            "run `sandbox image prune`, or set SANDBOX_DATA_DIR"
        )
    begin()
    with store.building() as work:
        target = work / "layer"
        target.mkdir(mode=0o755)
        layer = build(work, target)
        store.publish_layer(target, key)
    return layer


def _assemble(
    recipe: Recipe, release: Release, store: ImageStore, layer: Layer, kernel: Layer | None, work: Path
) -> Image:
    key, target = layer_key(recipe, release), work / "image"
    kernel_layer = kernel_key(release) if kernel else None
    booted, source, kernel_source = kernel or layer, store.layers / key, store.layers / (kernel_layer or key)
    target.mkdir(mode=0o755)
    (target / ROOT).hardlink_to(source / ROOT)
    (target / KERNEL).hardlink_to(kernel_source / KERNEL)
    agent = agent_sources()
    modules = [(name, (source / f"{name}.ko").read_bytes()) for name in booted.modules]
    python = next((package.version for package in layer.packages if package.name == "python3"), "")
    files = agent | compile_agent(agent, python)
    (target / INITRD).write_bytes(initramfs(_busybox(), _init(), modules, files))
    manifest = ImageManifest(
        name=recipe.name,
        recipe=recipe,
        suite=release.codename,
        arch=ARCH,
        kernel=booted.kernel,
        packages=layer.packages,
        pip=layer.pip,
        files={KERNEL: booted.files[KERNEL], ROOT: layer.files[ROOT], INITRD: file_record(target / INITRD)},
        agent=_agent_digest(agent),
        protocol=wire.PROTOCOL_VERSION,
        layer=key,
        kernel_layer=kernel_layer,
        inputs=inputs_digest(recipe, release),
    )
    return store.publish(target, manifest)


def _agent_digest(sources: dict[str, bytes]) -> str:
    return digest_of({name: hashlib.sha256(data).hexdigest() for name, data in sources.items()})


def _init() -> bytes:
    return (resource("images") / "init").read_bytes()


def _busybox() -> bytes:
    for path in _BUSYBOX:
        if path.is_file():
            data = path.read_bytes()
            if b"/ld-linux" in data[:4096]:
                raise ImageError(f"{path} is not static, expected Debian's busybox-static: install that package")
            return data
    raise ImageError("busybox is missing: run `python3 -m sandbox.setup.packages`")
