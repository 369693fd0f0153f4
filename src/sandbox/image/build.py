"""From a recipe to a published image."""

from __future__ import annotations

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
from sandbox.image.inputs import Inputs, agent_sources, busybox, digest_of_agent, init_program, inputs_of
from sandbox.image.kernel_build import KERNEL_BYTES, build_kernel
from sandbox.image.layer import ARCH, KERNEL, Layer, build_layer, file_record, read_layer
from sandbox.image.manifest import ImageManifest
from sandbox.image.recipe import Recipe, is_recipe, known_recipes, load_recipe, recipe_file
from sandbox.image.store import INITRD, ROOT, Image, ImageStore
from sandbox.image.wanted import check_wanted
from sandbox.setup.sources import Release, host_release
from sandbox.stored import refused

Progress = Callable[[str], None]

_BUILD_BYTES = 1 << 30


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
    if (image := current_image(recipe, store)) is not None:
        return image
    return _build(recipe, str(recipe_file(name)), store, progress, fresh=False, force=False)


def build_image(
    recipe: Recipe, store: ImageStore, progress: Progress, *, origin: str = "", fresh: bool = False
) -> Image:
    """Build and publish an image and give it the recipe's name; `origin` is the recipe's file.

    With `fresh`, the root file system is made anew from the mirror, else a cached layer of the same packages is used.
    Blocking. If it fails, nothing half-made is left, and the name stands for what it stood for before.
    """
    return _build(recipe, origin, store, progress, fresh=fresh, force=True)


def is_current(name: str, store: ImageStore) -> bool:
    """Return whether `ensure_image` would find the image of this recipe built and up to date."""
    return current_image(load_recipe(name), store) is not None


def current_image(recipe: Recipe, store: ImageStore) -> Image | None:
    """Return the image of this recipe if it is up to date: the last one that was built from what it is made from now.

    The recipe's name plays no part: another recipe may have taken it.
    """
    inputs = inputs_of(recipe, host_release()).digest
    if (image := store.built_from(inputs)) is not None:
        return image
    try:  # published by a version that did not note the inputs
        image = store.find(recipe.name)
    except ImageError:
        return None
    return image if image.manifest.inputs == inputs else None


def _build(recipe: Recipe, origin: str, store: ImageStore, progress: Progress, *, fresh: bool, force: bool) -> Image:
    if platform.machine() != "x86_64":
        raise ImageError(f"this host is {platform.machine()}, expected x86_64: images exist for that machine only")
    begin = time.monotonic()

    def say(text: str) -> None:
        check_wanted()
        progress(f"[{time.monotonic() - begin:5.1f} s] {text}")

    try:
        return _build_locked(recipe, origin, store, say, fresh=fresh, force=force)
    except OSError as error:
        raise ImageError(
            f"the image {recipe.name} could not be built, which takes some 500 MB: {refused(error, store.directory)}"
        ) from error


def _build_locked(recipe: Recipe, origin: str, store: ImageStore, say: Progress, *, fresh: bool, force: bool) -> Image:
    release = host_release()
    with store.locked(lambda: say("waiting for another build to end")):
        if not force and (image := current_image(recipe, store)):
            return image
        inputs = inputs_of(recipe, release)

        def layer_of(key: str, what: str, size: int, build: Callable[[Path, Path], Layer]) -> Layer:
            found = None if fresh else read_layer(store.layers / key)
            return found or _build_layer(store, key, size, partial(say, f"{recipe.name}: {what}"), build)

        what = f"Debian {release.codename} with {len(recipe.packages)} packages, half a minute or so"
        layer = layer_of(inputs.layer, what, _BUILD_BYTES, partial(build_layer, recipe, release))
        kernel = None
        if inputs.kernel_layer is not None:
            what = "the minimal kernel is compiled, some minutes"
            kernel = layer_of(inputs.kernel_layer, what, KERNEL_BYTES, partial(build_kernel, release))
        say(f"{recipe.name}: initramfs with the agent")
        with store.building() as work:
            image = _assemble(recipe, origin, release, inputs, store, layer, kernel, work)
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
    recipe: Recipe,
    origin: str,
    release: Release,
    inputs: Inputs,
    store: ImageStore,
    layer: Layer,
    kernel: Layer | None,
    work: Path,
) -> Image:
    target = work / "image"
    booted, source = kernel or layer, store.layers / inputs.layer
    target.mkdir(mode=0o755)
    (target / ROOT).hardlink_to(source / ROOT)
    (target / KERNEL).hardlink_to(store.layers / (inputs.kernel_layer or inputs.layer) / KERNEL)
    agent = agent_sources()
    if digest_of_agent(agent) != inputs.agent:
        raise ImageError(f"the agent's sources were changed while the image {recipe.name} was built: build it again")
    modules = [(name, (source / f"{name}.ko").read_bytes()) for name in booted.modules]
    python = next((package.version for package in layer.packages if package.name == "python3"), "")
    files = agent | compile_agent(agent, python)
    (target / INITRD).write_bytes(initramfs(busybox(), init_program(), modules, files))
    manifest = ImageManifest(
        name=recipe.name,
        recipe=recipe,
        suite=release.codename,
        arch=ARCH,
        kernel=booted.kernel,
        packages=layer.packages,
        pip=layer.pip,
        files={KERNEL: booted.files[KERNEL], ROOT: layer.files[ROOT], INITRD: file_record(target / INITRD)},
        agent=inputs.agent,
        protocol=wire.PROTOCOL_VERSION,
        layer=inputs.layer,
        kernel_layer=inputs.kernel_layer,
        inputs=inputs.digest,
    )
    return store.publish(target, manifest, origin)
