"""Where this library keeps its files: one lasting directory and one that goes with the boot."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import ConfigError
from sandbox.proc import mounts

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
        data, runtime = os.environ.get("SANDBOX_DATA_DIR"), os.environ.get("SANDBOX_RUNTIME_DIR")
        return cls(
            data=Path(data or _usual_data()).absolute(),
            runtime=Path(runtime or _usual_runtime()).absolute(),
        )


def _usual_data() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/sandbox")
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sandbox"
    except RuntimeError:
        raise ConfigError(
            f"user {os.geteuid()} has no home directory to keep images in; set SANDBOX_DATA_DIR to a directory of yours"
        ) from None


def _usual_runtime() -> Path:
    if os.geteuid() == 0:
        return _RUNTIME_OF_ROOT
    xdg_runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(xdg_runtime) / "sandbox" if xdg_runtime else Path(f"/tmp/sandbox-{os.geteuid()}")  # noqa: S108 - its owner is checked


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
        return {mount.device: mount.kind for mount in mounts()}
    except OSError:
        return {}


# Found out once, here, because later questions come from event loops.
_RUNTIME_OF_ROOT = in_memory(Path("/run/sandbox"), Path("/dev/shm/sandbox"))  # noqa: S108 - its owner is looked at


def make_directory(path: Path, mode: int = 0o755) -> None:
    """Make a directory, and its parents, with exactly this mode: QEMU's user must get in whatever our umask is."""
    if not path.is_dir():
        make_directory(path.parent, mode)
        path.mkdir(exist_ok=True)
        path.chmod(mode)


def owner_of(path: Path) -> str:
    """Return whose a path is, or else what is there of the way to it, for a message."""
    seen = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
    uid = seen.lstat().st_uid
    try:
        return f"{seen} belongs to user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"{seen} belongs to user {uid}"


def resource(name: str) -> Path:
    """Return the directory `guest_agent` or `images`: inside the installed package, or beside `src` in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_data" / name
    return installed if installed.is_dir() else package.parents[1] / name
