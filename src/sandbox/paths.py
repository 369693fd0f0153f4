"""Where this library keeps its files: one lasting directory and one that goes with the boot."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

_MEMORY = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True)
class Paths:
    """The two directories of one user.

    `data` holds images and templates and survives a reboot. `runtime` holds one directory per living process
    (sockets, libvirt's state); its path must be short, because a Unix socket's path has at most 107 bytes.
    """

    data: Path
    runtime: Path

    @property
    def images(self) -> Path:
        return self.data / "images"

    @property
    def templates(self) -> Path:
        return self.data / "templates"

    @classmethod
    def default(cls) -> Paths:
        """`/var/lib` and `/run` for root, the XDG directories for everybody else.

        Where root's runtime directory would lie on a disk, as in containers, it is below `/dev/shm` instead, if that is
        in memory: libvirt flushes its record of a VM to the disk a dozen times for each start. (What users keep in
        `/dev/shm`, logind may remove when they log out.) `SANDBOX_DATA_DIR` and `SANDBOX_RUNTIME_DIR` override both.
        """
        uid = os.geteuid()
        if uid == 0:
            data, runtime = Path("/var/lib/sandbox"), _RUNTIME_OF_ROOT
        else:
            cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
            xdg_runtime = os.environ.get("XDG_RUNTIME_DIR")
            data = Path(cache) / "sandbox"
            runtime = Path(xdg_runtime) / "sandbox" if xdg_runtime else Path(f"/tmp/sandbox-{uid}")  # noqa: S108 - its owner is checked
        return cls(
            data=Path(os.environ.get("SANDBOX_DATA_DIR") or data).absolute(),
            runtime=Path(os.environ.get("SANDBOX_RUNTIME_DIR") or runtime).absolute(),
        )


def in_memory(usual: Path, instead: Path) -> Path:
    """Return `usual`; or `instead` if that alone is in memory and nobody else has it."""
    kinds = _kinds_of_file_systems()
    if _kind(usual.parent, kinds) in _MEMORY or _kind(instead.parent, kinds) not in _MEMORY:
        return usual
    try:
        status = instead.lstat()
    except FileNotFoundError:
        return instead
    return instead if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() else usual


def _kind(path: Path, kinds: dict[int, str]) -> str:
    try:
        return kinds.get(path.stat().st_dev, "")
    except OSError:
        return ""


def _kinds_of_file_systems() -> dict[int, str]:
    """Return the type of each mounted file system by its device's number."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        major, minor = map(int, before.split()[2].split(":"))
        found[os.makedev(major, minor)] = after.split()[0]
    return found


# Found out once, here, because later questions come from event loops.
_RUNTIME_OF_ROOT = in_memory(Path("/run/sandbox"), Path("/dev/shm/sandbox"))  # noqa: S108 - its owner is looked at


def make_directory(path: Path, mode: int = 0o755) -> None:
    """Make a directory, and its parents, with exactly this mode: QEMU's user must get in whatever our umask is."""
    if not path.is_dir():
        make_directory(path.parent, mode)
        path.mkdir(exist_ok=True)
        path.chmod(mode)


def resource(name: str) -> Path:
    """Return the directory `guest_agent` or `images`: inside the installed package, or beside `src` in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_data" / name
    return installed if installed.is_dir() else package.parents[1] / name
