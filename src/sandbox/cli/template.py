"""`sandbox template …`: look after golden snapshots, and choose which generation is used."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress

from rich.console import Console
from rich.table import Table

from sandbox.cli.reporting import reporting
from sandbox.cli.run import complain, report
from sandbox.config import HostConfig
from sandbox.errors import SandboxError, TemplateError
from sandbox.image.recipe import is_recipe, load_recipe
from sandbox.image.store import ImageStore
from sandbox.template.prune import prune_templates
from sandbox.template.store import Stored, TemplateStore, plain

_SIZED = re.compile(r"([a-z0-9.+-]+)-[0-9]+m-[0-9]+c")


def _store() -> TemplateStore:
    return TemplateStore(HostConfig().paths.templates)


@reporting
def ls(*, as_json: bool) -> int:
    store = _store()
    rows = [_row(store, stored) for stored in store.ls()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return _tell_faults(store)
    table = Table("series", "generation", "name", "age", "memory", "lint", "")
    for row in rows:
        age, size = f"{row['age_seconds']:.0f} s", f"{float(str(row['data_bytes'])) / 1e6:.0f} MB"
        pinned = "pinned" if row["pinned"] else ""
        table.add_row(
            str(row["series"]), str(row["generation"]), str(row["name"])[:12], age, size, str(row["lint"]), pinned
        )
    Console(width=None if Console().is_terminal else 140).print(table)
    return _tell_faults(store)


def _tell_faults(store: TemplateStore) -> int:
    """Say what is damaged, apart from what is listed."""
    for said in store.faults():
        complain(said)
    return 0


def _find(store: TemplateStore, name: str) -> Stored:
    """Return the template that is meant: where recipes of one name have a series of this name each, that of ours."""
    sized = _SIZED.fullmatch(name)
    if sized and is_recipe(sized[1]):
        ours = f"{name}@{load_recipe(sized[1]).key}"
        if any(one.manifest.series == ours for one in store.ls()):
            return store.find(ours)
    return store.find(name)


def inspect(name: str) -> int:
    """Print a template's manifest: what it was made for, its digests, and what the inspection of its guest found."""
    store = _store()
    try:
        stored = _find(store, name)
    except SandboxError as error:
        return report(error)
    print(json.dumps(_row(store, stored) | {"manifest": stored.manifest.model_dump(mode="json")}, indent=1))
    return 0


def verify(name: str) -> int:
    try:
        stored = _find(_store(), name)
        stored.manifest.verify(stored.directory, stored.manifest.requirement)
    except SandboxError as error:
        return report(error, status=1)
    manifest = stored.manifest
    print(f"{manifest.series} generation {manifest.generation}: every byte is as it was baked; {manifest.lint.verdict}")
    return 0


def prune() -> int:
    config = HostConfig()
    try:
        images = {image.digest for image in ImageStore(config.paths.images).ls()}
        removed = prune_templates(config.paths.templates, images)
    except SandboxError as error:
        return report(error)
    for name in removed:
        print(f"removed {name}")
    print(f"{len(removed)} removed; the newest two generations of each series stay, and those in use")
    return 0


def rollback(name: str, *, undo: bool) -> int:
    """Pin the generation before the newest of a series, or the named one; or let the newest be used again."""
    store = _store()
    try:
        stored = _find(store, name)
        series = stored.manifest.series
        if undo:
            store.pin(series, None)
            print(f"{series}: the newest generation is used")
            return 0
        if name in (series, plain(series)):
            live = store.pinned(series) or stored
            former = store.former(series, live.manifest.generation)
            if former is None:
                raise TemplateError(f"{series} has no generation before {live.manifest.generation}")
            stored = former
        store.pin(series, stored)
    except SandboxError as error:
        return report(error)
    print(
        f"{series}: generation {stored.manifest.generation} is used from now on, by running pools too; --undo ends that"
    )
    return 0


def _row(store: TemplateStore, stored: Stored) -> dict[str, object]:
    manifest = stored.manifest
    pinned = store.pinned(manifest.series)
    return {
        "name": stored.name,
        "series": manifest.series,
        "generation": manifest.generation,
        "age_seconds": round(time.monotonic() - manifest.baked_at, 1),
        "image": manifest.requirement.image,
        "data_bytes": _data_bytes(stored),
        "lint": manifest.lint.verdict,
        "pinned": pinned is not None and pinned.name == stored.name,
        "directory": str(stored.directory),
    }


def _data_bytes(stored: Stored) -> int:
    """Return what a template takes on the disk: it may be damaged, or be removed while it is listed."""
    total = 0
    for name in stored.manifest.files:
        with suppress(OSError):
            total += (stored.directory / name).stat().st_blocks * 512
    return total
