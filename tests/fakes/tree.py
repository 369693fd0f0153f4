"""A guest that says what is in a tree, without a guest: entries, and whether they were taken."""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.errors import HostFileError
from sandbox.guest.entry import TreeEntry
from sandbox.guest.tree import TreeWriter


def entry(name: str, kind: str = "file", mode: int = 0o644, *, size: int = 1, target: str = "") -> TreeEntry:
    """Return what a guest says about something in its tree."""
    return TreeEntry.model_validate(
        {"type": kind, "size": size, "mode": mode, "mtime": 0, "name": name, "target": target}
    )


def give(writer: TreeWriter, name: str, kind: str = "file", data: bytes = b"x", target: str = "") -> bool:
    """Say one entry as `download` does; return whether something was made of it."""
    before = _made(writer)
    try:
        writer.take([entry(name, kind, size=len(data), target=target)], data)
    except HostFileError:
        return False
    return _made(writer) > before


def outside(top: Path) -> dict[str, str]:
    """Return all that is below a directory and not in its `copy`, with contents and what links point to."""
    found = {}
    for directory, directories, files in os.walk(top):
        if Path(directory) == top:
            directories[:] = [name for name in directories if name != "copy"]
        for name in (*directories, *files):
            path = Path(directory) / name
            is_read = path.is_file() and not path.is_symlink()
            found[str(path.relative_to(top))] = path.read_text() if is_read else str(path.lstat().st_mode)
    return found


def _made(writer: TreeWriter) -> int:
    report = writer.report()
    return report.files + report.directories + report.links
