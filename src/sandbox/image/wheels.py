"""Python packages for the guest: wheels chosen for its Python and packed as a deterministic tar file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
import re
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from sandbox.errors import ImageError
from sandbox.image.command import last_lines, run_owned
from sandbox.image.manifest import PackageRecord

GUEST_PYTHON = {"bookworm": "3.11", "trixie": "3.13"}
_GLIBC_MINOR = 36  # of Debian 12, the older of the two
_MTIME = 946_684_800  # 2000-01-01: any fixed time will do, after 1980 for zip files' sake


def pack_wheels(requirements: Sequence[str], suite: str, work: Path) -> tuple[Path, tuple[PackageRecord, ...]]:
    """Download and unpack wheels with this Python's pip, as the calling user and with the user's pip configuration.

    Returns a tar file relative to `/usr/local` of the guest, and what is in it. Source distributions are refused:
    they would run their set-up code on the host. pip refuses those that it finds in an index, and the recipe those that
    are named directly.
    """
    if suite not in GUEST_PYTHON:
        raise ImageError(f"pip requirements need a known Python, but Debian {suite} is not known: use Debian packages")
    if importlib.util.find_spec("pip") is None:
        raise ImageError(f"{sys.executable} has no pip, which pip requirements need: run `python -m ensurepip`")
    version = GUEST_PYTHON[suite]
    target, listing, log = work / "wheels", work / "requirements.txt", work / "pip.log"
    listing.write_text("".join(f"{requirement}\n" for requirement in requirements))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", version, "--target", str(target), "--requirement", str(listing)]
    for minor in range(_GLIBC_MINOR, 16, -1):
        command += ["--platform", f"manylinux_2_{minor}_x86_64"]
    command += ["--platform", "manylinux2014_x86_64", "--platform", "linux_x86_64"]
    if run_owned(command, {**os.environ, "PYTHONHASHSEED": "0"}, log, work):
        raise ImageError(
            f"pip could not get wheels for Python {version} of {', '.join(requirements)}: correct the requirements, "
            f"or check the network and pip's index; it said:\n{last_lines(log)}"
        )
    packages = sorted(
        (re.sub(r"[-_.]+", "-", found.name).lower(), found.version)
        for found in importlib.metadata.distributions(path=[str(target)])
    )
    archive = work / "wheels.tar"
    _pack(target, f"lib/python{version}/dist-packages", archive)
    return archive, tuple(PackageRecord(name=name, version=number) for name, number in packages)


def _pack(tree: Path, site: str, archive: Path) -> None:
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        parts = Path(site).parts
        for depth in range(1, len(parts) + 1):
            _add(tar, "/".join(parts[:depth]), None, executable=True)
        for path in sorted(tree.rglob("*")):
            relative = path.relative_to(tree)
            script = relative.parts[0] == "bin"
            name = str(relative) if script else f"{site}/{relative}"
            if path.is_dir():
                _add(tar, name, None, executable=True)
            elif path.is_file():
                data = path.read_bytes()
                if script:  # pip writes the path of the Python that runs it
                    data = re.sub(rb"\A#!.*python.*", b"#!/usr/bin/python3", data)
                _add(tar, name, data, executable=os.access(path, os.X_OK))


def _add(tar: tarfile.TarFile, name: str, data: bytes | None, *, executable: bool) -> None:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    member.mode = 0o755 if executable else 0o644
    member.mtime = _MTIME
    member.size = len(data or b"")
    tar.addfile(member, io.BytesIO(data) if data else None)
