"""The image that a configuration names, followed while a pool runs: a recipe is known by its content, not its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sandbox.errors import ConfigError
from sandbox.image.build import image_of
from sandbox.image.inputs import inputs_of
from sandbox.image.recipe import Recipe, is_recipe, load_recipe, recipe_file
from sandbox.image.store import Image, ImageStore
from sandbox.log import log
from sandbox.setup.sources import host_release

_Stamp = tuple[int, int, int, int] | None


class Choice:
    """What `TemplateConfig.image` says, and the image that it stands for. Every method blocks.

    A recipe, by our name or by its file's path, stands for the last image that was built from what the recipe is made
    from now: its file as it is, the agent, the builder. A built image's name stands for the last image that was built
    under it from the same recipe. So an image that another recipe was built into is never followed, whatever its name.
    A digest stands for one image.
    """

    def __init__(self, name: str, store: ImageStore) -> None:
        self._store = store
        self._name = str(Path(name).absolute()) if name.endswith(".toml") else name
        self._recipe: Recipe | None = None
        self._read: _Stamp = None
        self._seen: tuple[Path, _Stamp] | None = None

    def __repr__(self) -> str:
        return f"<Choice {self._name}>"

    def find(self, progress: Callable[[str], None]) -> Image:
        """Return the image, built if it is a recipe's and missing or stale. Raises `ImageError` or `ConfigError`."""
        self._renew_recipe()
        place = self._place()
        self._seen = None if place is None else (place, _stamp(place))
        return image_of(self._name, self._store, progress)

    def look(self, image: Image) -> Image:
        """Return what it stands for now, without building: `image` as long as there is nothing newer.

        Costs some calls of `stat` where nothing has changed. Raises `ImageError` when what is newer cannot be used.
        """
        self._renew_recipe()
        place = self._place()
        if place is None or self._seen == (seen := (place, _stamp(place))):
            return image
        newer = self._newer(image)
        self._seen = seen
        return image if newer is None else newer

    def _newer(self, image: Image) -> Image | None:
        if self._recipe is not None:
            return self._store.built_from(inputs_of(self._recipe, host_release()).digest)
        newer = self._store.find(self._name)
        if newer.manifest.recipe == image.manifest.recipe:
            return newer
        log.warning("image_not_followed", name=self._name, reason="another recipe was built under this name")
        return None

    def _place(self) -> Path | None:
        """Return the pointer that tells which image is meant; None where a digest was asked for."""
        if self._recipe is not None:
            return self._store.place_of_inputs(inputs_of(self._recipe, host_release()).digest)
        place = self._store.place_of_name(self._name)
        if place is None or not (self._seen or _stamp(place)):
            return None
        return place

    def _renew_recipe(self) -> None:
        """Read the recipe again where its file has changed. One that cannot be read leaves the former in force."""
        if not is_recipe(self._name) or (read := _stamp(recipe_file(self._name))) == self._read:
            return
        try:
            self._recipe = load_recipe(self._name)
        except ConfigError as error:
            if self._recipe is None:
                raise
            log.warning("recipe_not_followed", recipe=self._name, reason=str(error))
        self._read = read


def newest_image(name: str, store: ImageStore) -> Image:
    """Return the image of a recipe or name without building it: a recipe's own, before any other of its name.

    Raises `ImageError` where there is none.
    """
    if is_recipe(name):
        recipe = load_recipe(name)
        if (image := store.built_from(inputs_of(recipe, host_release()).digest)) is not None:
            return image
        name = recipe.name
    return store.find(name)


def _stamp(path: Path) -> _Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
