"""Where files are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox import paths
from sandbox.paths import Paths, in_memory


@pytest.fixture
def kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Directories that are told to be on a file system of the kind that their name stands for."""
    told = {"disk": "ext4", "memory": "tmpfs"}
    for name in told:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(paths, "_kind", lambda path, _: told.get(path.name, ""))
    return told


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize(
    ("usual", "instead", "chosen"),
    [
        ("disk", "memory", "memory"),
        ("memory", "memory", "memory"),
        ("disk", "disk", "disk"),
        ("unknown", "disk", "unknown"),
    ],
)
def test_what_is_in_memory_is_preferred(tmp_path: Path, usual: str, instead: str, chosen: str) -> None:
    """The other place is taken only where the usual one is on a disk and the other one is not."""
    found = in_memory(tmp_path / usual / "usual", tmp_path / instead / "instead")
    assert found.parent.name == chosen
    assert (found.name == "instead") is (usual == "disk" and instead == "memory")


@pytest.mark.usefixtures("kinds")
def test_what_somebody_else_has_made_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link, a file, or another user's directory under that name leaves the usual place in force; ours does not."""
    usual, instead = tmp_path / "disk" / "usual", tmp_path / "memory" / "instead"
    instead.symlink_to(tmp_path)
    assert in_memory(usual, instead) == usual
    instead.unlink()
    instead.touch()
    assert in_memory(usual, instead) == usual
    instead.unlink()
    instead.mkdir()
    assert in_memory(usual, instead) == instead
    monkeypatch.setattr(os, "geteuid", lambda: instead.stat().st_uid + 1)
    assert in_memory(usual, instead) == usual


def test_the_kernel_tells_file_systems_apart() -> None:
    """Of this host: /proc is what it is, and what cannot be looked at has no kind."""
    kinds = paths._kinds_of_file_systems()
    assert paths._kind(Path("/proc"), kinds) == "proc"
    assert paths._kind(Path("/nowhere"), kinds) == ""


def test_variables_override_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names directories gets those."""
    monkeypatch.setenv("SANDBOX_DATA_DIR", "/d")
    monkeypatch.setenv("SANDBOX_RUNTIME_DIR", "r")
    assert Paths.default() == Paths(data=Path("/d"), runtime=Path.cwd() / "r"), "a relative one becomes absolute"
