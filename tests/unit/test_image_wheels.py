"""Python packages for a guest, from an index that is a directory: what pip unpacks there, as the image gets it."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from sandbox.errors import ImageError
from sandbox.image.wheels import pack_wheels

METADATA = "Metadata-Version: 2.1\nName: Sample.Package\nVersion: 1.5\n"
CONTENT = {
    "sample/__init__.py": "def main():\n    print('here')\n",
    "sample_package-1.5.dist-info/METADATA": METADATA,
    "sample_package-1.5.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "sample_package-1.5.dist-info/entry_points.txt": "[console_scripts]\nsample = sample:main\n",
}


def _record(name: str, text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(text)}\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip is configured to take packages from, and from nowhere else."""
    place = tmp_path / "index"
    place.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


def _work(tmp_path: Path, name: str = "work") -> Path:
    work = tmp_path / name
    work.mkdir()
    return work


def _write_wheel(index: Path) -> None:
    with zipfile.ZipFile(index / "sample_package-1.5-py3-none-any.whl", "w") as wheel:
        for name, text in CONTENT.items():
            wheel.writestr(name, text)
        records = "".join(_record(name, text) for name, text in CONTENT.items())
        wheel.writestr("sample_package-1.5.dist-info/RECORD", f"{records}sample_package-1.5.dist-info/RECORD,,\n")


def test_a_wheel_is_packed_for_the_python_of_the_guest(index: Path, tmp_path: Path) -> None:
    """Modules lie where Debian's Python looks, scripts name it, nothing is owned by us, and no two packs differ."""
    _write_wheel(index)
    archive, packages = pack_wheels(["sample-package"], "bookworm", _work(tmp_path))
    assert [(package.name, package.version) for package in packages] == [("sample-package", "1.5")]
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar}
        script = tar.extractfile("bin/sample")
        assert script is not None
        assert script.readline() == b"#!/usr/bin/python3\n"
    assert members["bin/sample"].mode & 0o111
    assert members["lib/python3.11/dist-packages/sample/__init__.py"].mode & 0o777 == 0o644
    assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
    again, _ = pack_wheels(["sample-package"], "bookworm", _work(tmp_path, "again"))
    assert again.read_bytes() == archive.read_bytes()


def test_a_source_distribution_is_never_built(index: Path, tmp_path: Path) -> None:
    """Its set-up code would run on the host: the error names what was wanted and has pip's own words."""
    ran = tmp_path / "ran"
    with tarfile.open(index / "sample-package-1.5.tar.gz", "w:gz") as archive:
        for name, text in (("PKG-INFO", METADATA), ("setup.py", f"open({str(ran)!r}, 'w')\n")):
            member = tarfile.TarInfo(f"sample-package-1.5/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(ImageError, match=r"could not get wheels for Python 3\.11 of sample-package"):
        pack_wheels(["sample-package"], "bookworm", _work(tmp_path))
    assert not ran.exists()


def test_a_debian_without_a_known_python_has_no_wheels(tmp_path: Path) -> None:
    """It is told before pip is asked."""
    with pytest.raises(ImageError, match="Debian sid is not known"):
        pack_wheels(["sample-package"], "sid", tmp_path)
