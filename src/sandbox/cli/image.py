"""`sandbox image …`: build and look after guest images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox.cli.reporting import reporting
from sandbox.cli.run import complain, report
from sandbox.config import HostConfig
from sandbox.errors import ConfigError, SandboxError
from sandbox.image.build import build_image
from sandbox.image.choice import newest_image
from sandbox.image.recipe import Kernel, load_recipe, recipe_file
from sandbox.image.store import ImageStore
from sandbox.log import log
from sandbox.printable import printable
from sandbox.template.prune import prune_images


def _store() -> ImageStore:
    return ImageStore(HostConfig().paths.images)


def build(recipe: str, packages: list[str], pip: Path | None, kernel: Kernel | None, *, fresh: bool) -> int:
    try:
        wanted = load_recipe(recipe)
        if packages or pip is not None:
            wanted = wanted.with_extras(packages, _requirements(pip) if pip else ())
        if kernel is not None:
            wanted = wanted.with_kernel(kernel)
        image = build_image(wanted, _store(), log.progress, origin=str(recipe_file(recipe)), fresh=fresh)
    except SandboxError as error:
        return report(error)
    print(image.digest)
    return 0


def _requirements(path: Path) -> list[str]:
    """Return the lines of a requirements file that name a requirement."""
    try:
        lines = [line.split(" #", 1)[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8; save it as that") from None
    return [line for line in lines if line and not line.startswith("#")]


@reporting
def ls(*, as_json: bool) -> int:
    store = _store()
    wanted, origins = store.wanted(), store.origins()
    rows = [
        {
            "name": image.name,
            "digest": image.digest,
            "current": image.digest in wanted,
            "recipe": origins.get(image.digest, ""),
            "suite": image.manifest.suite,
            "kernel": image.manifest.kernel,
            "packages": len(image.manifest.packages),
            "bytes": sum(record.size for record in image.manifest.files.values()),
        }
        for image in store.ls()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return _tell_faults(store)
    table = Table("name", "digest", "suite", "kernel", "packages", "size", "recipe")
    for row in rows:
        name = f"{row['name']}" if row["current"] else f"{row['name']} (old)"
        size = f"{int(str(row['bytes'])) / 1e6:.0f} MB"
        digest = str(row["digest"])[:12]
        recipe = Text(printable(str(row["recipe"])))
        table.add_row(name, digest, str(row["suite"]), str(row["kernel"]), str(row["packages"]), size, recipe)
    Console(width=None if Console().is_terminal else 180).print(table)
    return _tell_faults(store)


def _tell_faults(store: ImageStore) -> int:
    """Say what is damaged, apart from what is listed."""
    for fault in store.faults():
        complain(fault.said)
    return 0


def inspect(name: str) -> int:
    try:
        image = newest_image(name, _store())
    except SandboxError as error:
        return report(error)
    document = {"digest": image.digest, "directory": str(image.directory), **image.manifest.model_dump(mode="json")}
    print(json.dumps(document, indent=1))
    return 0


def verify(name: str) -> int:
    store = _store()
    try:
        image = newest_image(name, store)
        store.verify(image)
    except SandboxError as error:
        return report(error, status=1)
    print(f"{image.name} {image.digest[:12]}: every file is as it was published")
    return 0


def prune() -> int:
    try:
        pruned, templates = prune_images(_store(), HostConfig().paths.templates)
    except SandboxError as error:
        return report(error)
    for name in [*pruned.removed, *(f"templates/{name}" for name in templates)]:
        print(f"removed {name}")
    for fault in _store().faults():
        complain(f"left as it is: {fault.said}")
    free = shutil.disk_usage(HostConfig().paths.data).free
    print(f"{pruned.freed_bytes / 1e6:.0f} MB of images freed; {free / 1e9:.1f} GB are free")
    return 0
