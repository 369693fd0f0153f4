"""Where this process may make control groups, for each controller: found by looking, and never an error.

A group is made only in a place that is ours to divide: one that was named, one that was delegated to us, or the root of
a hierarchy in which nobody has put us into a group. What a service manager keeps for itself is left alone.
Standard library only.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

CONTROLLERS = ("memory", "pids", "cpu")
_DELEGATED = ("user.delegate", "trusted.delegate")
"""Extended attributes that systemd sets on a delegated group."""
_OURSELVES = "sandbox-main"
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted tree of control groups, and the group in it that this process is in."""

    version: int
    mount: Path
    own: Path


@dataclass
class Places:
    """For each controller the group below which ours are made, or why there is none."""

    parents: dict[str, Path] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def hierarchies(process: str = "self") -> dict[str, Hierarchy]:
    """Return the hierarchy that has each controller, as the kernel tells."""
    own: dict[str, str] = {}
    for line in _lines(process, "cgroup"):
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))
    found: dict[str, Hierarchy] = {}
    for version, root, mount, options in _mounts(process):
        if version == 2 and "" in own:
            here = _below(mount, root, own[""])
            with suppress(OSError):
                controllers = (here / "cgroup.controllers").read_text().split()
                found |= {name: Hierarchy(2, mount, here) for name in CONTROLLERS if name in controllers}
        elif version == 1:
            for name in set(CONTROLLERS) & set(options) & set(own):
                found[name] = Hierarchy(1, mount, _below(mount, root, own[name]))
    return found


def find_places(wanted: str = "auto", controllers: Sequence[str] = CONTROLLERS) -> Places:
    """Return where groups can be made. `wanted` is `auto`, `off`, or a path below the mount point, made if need be."""
    places = Places()
    try:
        trees = hierarchies()
    except OSError as error:
        trees = {}
        places.refused = dict.fromkeys(CONTROLLERS, f"/proc does not tell: {error.strerror}")
    for name in controllers:
        if wanted == "off":
            places.refused[name] = "switched off"
        elif name not in trees:
            places.refused.setdefault(name, "no hierarchy of control groups offers it")
        else:
            _find(name, trees[name], wanted, places)
    return places


def _find(name: str, tree: Hierarchy, wanted: str, places: Places) -> None:
    base = _named(tree, wanted) if wanted != "auto" else _delegated(tree)
    if base is None:
        places.refused[name] = f"the group {tree.own}, which this process is in, was not delegated to it"
        return
    try:
        base.mkdir(parents=True, exist_ok=True)
        if not os.access(base / "cgroup.procs", os.W_OK):
            raise PermissionError(errno.EACCES, "it may not be written")
        if tree.version == 2:
            _enable_from(tree.mount if wanted != "auto" else base, base, name, tree)
    except OSError as error:
        places.refused[name] = f"{base}: {error.strerror}"
        return
    places.parents[name], places.versions[name] = base, tree.version


def _named(tree: Hierarchy, wanted: str) -> Path:
    return tree.mount / wanted.lstrip("/")


def _delegated(tree: Hierarchy) -> Path | None:
    """Return the nearest group above us that is ours to divide, ours included."""
    uid = os.geteuid()
    for path in (tree.own, *tree.own.parents):
        if not path.is_relative_to(tree.mount):
            break
        is_ours = uid != 0 and path.stat().st_uid == uid and path.name != _OURSELVES
        if is_ours or (tree.version == 2 and any(_attribute(path, name) == b"1" for name in _DELEGATED)):
            return path
    return tree.mount if tree.own == tree.mount else None


def _enable_from(top: Path, base: Path, name: str, tree: Hierarchy) -> None:
    """Have `base`'s children controlled (version 2), and those of the groups between it and `top` for that."""
    for path in [*reversed([parent for parent in base.parents if parent.is_relative_to(top)]), base]:
        enable(path, name, may_move=path == tree.own)


def enable(path: Path, name: str, *, may_move: bool = False) -> None:
    """Let the children of a group of version 2 be controlled; `may_move` lets this process make way into a child.

    Only a group without processes of its own may do that. Raises `OSError`.
    """
    file = path / "cgroup.subtree_control"
    if name in file.read_text().split():
        return
    try:
        file.write_text(f"+{name}")
    except OSError as error:
        if error.errno != errno.EBUSY or not may_move:
            raise
        aside = path / _OURSELVES
        aside.mkdir(exist_ok=True)
        (aside / "cgroup.procs").write_text("0")
        try:
            file.write_text(f"+{name}")
        except OSError:
            (path / "cgroup.procs").write_text("0")
            with suppress(OSError):
                aside.rmdir()
            raise OSError(errno.EBUSY, "other processes are in this group, so it cannot be divided") from error


def _lines(process: str, name: str) -> list[str]:
    """Return the lines of a file of a process, whatever bytes are in the names there."""
    text = os.fsdecode(Path(f"/proc/{process}/{name}").read_bytes())
    return [line for line in text.split("\n") if line]


def _mounts(process: str) -> Iterator[tuple[int, str, Path, list[str]]]:
    for line in _lines(process, "mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, mount = before.split(" ")[3:5]
            yield 2 if kind == "cgroup2" else 1, _unescape(root), Path(_unescape(mount)), options.split(",")


def _below(mount: Path, root: str, own: str) -> Path:
    """Return the directory of a group whose hierarchy is mounted from `root` on."""
    return mount / os.path.relpath(own, root) if own.startswith(root) and own != root else mount


def _attribute(path: Path, name: str) -> bytes:
    try:
        return os.getxattr(path, name)
    except OSError:
        return b""


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
