"""What the kernel tells in /proc. Names there can hold any byte: a mount point's, and that of any user's process."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of `mountinfo`."""

    device: int
    root: str
    """The directory of that device's file system which is mounted."""
    point: str
    kind: str
    """The file system's type."""


def proc_text(path: Path) -> str:
    """Return what a file of /proc holds; bytes that are no text come as they do in file names. Raises `OSError`."""
    return os.fsdecode(path.read_bytes())


def mounts(process: Path = Path("/proc/self")) -> list[Mount]:
    """Return what a process has mounted, in the order of mounting. Raises `OSError`."""
    return [_mount(line) for line in proc_text(process / "mountinfo").split("\n") if line]


def _mount(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    device, root, point = before.split(" ")[2:5]
    major, minor = map(int, device.split(":"))
    return Mount(os.makedev(major, minor), _unescape(root), _unescape(point), after.split(" ", 1)[0])


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
