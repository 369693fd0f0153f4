"""Remove what the image store does not need any more, and nothing that is mounted there."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from sandbox.errors import ImageError
from sandbox.proc import mounts


def mounts_below(path: Path) -> list[str]:
    """Return what is mounted below `path`, where removing files would remove somebody else's."""
    return [mount.point for mount in mounts() if mount.point.startswith(f"{path.resolve()}/")]


def remove_tree(path: Path) -> int:
    """Remove a file or a tree; return how many bytes that freed."""
    if path.is_symlink() or not path.is_dir():
        with suppress(FileNotFoundError):
            path.unlink()
        return 0
    if mounted := mounts_below(path):
        raise ImageError(f"{mounted[0]} is mounted in a directory to be removed: unmount it, then try again")
    statuses = [file.lstat() for file in path.rglob("*")]
    shutil.rmtree(path)
    # A hard-linked file goes with its last link, so it counts where its link count has come down to one.
    return sum(status.st_size for status in statuses if status.st_nlink == 1)
