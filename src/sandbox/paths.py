"""Where this library keeps its files: one lasting directory and one that goes with the boot."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


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

        `SANDBOX_DATA_DIR` and `SANDBOX_RUNTIME_DIR` override them.
        """
        uid = os.geteuid()
        if uid == 0:
            data, runtime = Path("/var/lib/sandbox"), Path("/run/sandbox")
        else:
            cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
            xdg_runtime = os.environ.get("XDG_RUNTIME_DIR")
            data = Path(cache) / "sandbox"
            runtime = Path(xdg_runtime) / "sandbox" if xdg_runtime else Path(f"/tmp/sandbox-{uid}")  # noqa: S108 - its owner is checked
        return cls(
            data=Path(os.environ.get("SANDBOX_DATA_DIR") or data).absolute(),
            runtime=Path(os.environ.get("SANDBOX_RUNTIME_DIR") or runtime).absolute(),
        )


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
