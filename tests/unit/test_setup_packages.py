"""Apt's sources as the host has them, and what is decided from them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.errors import ConfigError
from sandbox.setup import packages
from sandbox.setup.packages import HYPERVISOR, TOOLS, Plan, install, not_satisfied, plan
from sandbox.setup.sources import (
    Release,
    Source,
    debian_sources,
    host_release,
    parse_deb822,
    parse_list,
    with_backports,
)

BOOKWORM, TRIXIE = Release("bookworm", 12), Release("trixie", 13)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEB822 = f"""\
# written by the installer
Types: deb deb-src
URIs: http://one.example/debian/ http://two.example/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
# a comment within
Signed-By: {KEYRING}

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


def host(root: Path, name: str, text: str) -> Path:
    directory = root / "etc/apt/sources.list.d"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)
    return root


def test_one_line_sources() -> None:
    """Options, comments and source packages are told apart; of the options those about trust remain."""
    text = (
        f"deb [arch=amd64 signed-by={KEYRING}] http://mirror.example/debian bookworm main contrib # ours\n"
        "#deb http://off.example/debian bookworm main\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb\thttp://mirror.example/debian-security bookworm-security main\n"
    )
    assert list(parse_list(text)) == [
        Source("http://mirror.example/debian", "bookworm", ("main", "contrib"), (("signed-by", KEYRING),)),
        Source("http://mirror.example/debian-security", "bookworm-security", ("main",)),
    ]


def test_deb822_sources() -> None:
    """Every URI goes with every suite, continued lines count, and what is not enabled does not."""
    found = list(parse_deb822(DEB822))
    assert [(source.uri, source.suite) for source in found] == [
        ("http://one.example/debian/", "bookworm"),
        ("http://one.example/debian/", "bookworm-updates"),
        ("http://two.example/debian", "bookworm"),
        ("http://two.example/debian", "bookworm-updates"),
    ]
    assert {source.signed_by for source in found} == {KEYRING}


def test_an_inlined_key_is_not_taken_for_a_path() -> None:
    """apt then falls back to the host's trusted keys."""
    text = "Types: deb\nURIs: http://m.example\nSuites: trixie\nComponents: main\nSigned-By:\n ---BEGIN\n .\n xyz\n"
    assert next(parse_deb822(text)).signed_by is None


def test_lines_for_the_builder() -> None:
    """A source is rendered with its options and `main` only."""
    source = Source("http://m.example/debian", "bookworm", ("main", "contrib"), (("signed-by", KEYRING),))
    assert source.line() == f"deb [signed-by={KEYRING}] http://m.example/debian bookworm main"
    assert next(parse_deb822(source.stanza())) == Source(source.uri, "bookworm", ("main",), source.options)


def test_other_vendors_are_left_out(tmp_path: Path) -> None:
    """A vendor with a suite and component of the same names is told by its key or by what it says of itself."""
    host(tmp_path, "a.list", "deb [signed-by=/usr/share/keyrings/vendor.gpg] https://v.example/apt bookworm main\n")
    host(tmp_path, "b.list", "deb https://user:word@old-vendor.example/apt bookworm main\n")
    host(tmp_path, "c.sources", DEB822)
    lists = tmp_path / "var/lib/apt/lists"
    lists.mkdir(parents=True)
    (lists / "old-vendor.example_apt_dists_bookworm_InRelease").write_text("Origin: Vendor\nSuite: bookworm\n")
    found = debian_sources(BOOKWORM, tmp_path)
    assert [(source.uri, source.suite) for source in found] == [
        ("http://one.example/debian/", "bookworm"),
        ("http://one.example/debian/", "bookworm-updates"),
    ]


def test_backports_are_derived_from_the_main_archive(tmp_path: Path) -> None:
    """Same mirror and same key as the release; a configured entry is kept."""
    found = debian_sources(BOOKWORM, host(tmp_path, "debian.sources", DEB822))
    derived = with_backports(found, BOOKWORM)
    assert derived[-1].line() == f"deb [signed-by={KEYRING}] http://one.example/debian/ bookworm-backports main"
    assert with_backports(derived, BOOKWORM) == derived


def test_a_host_without_debian_sources(tmp_path: Path) -> None:
    """The message says what to add and where."""
    with pytest.raises(ConfigError, match="no source for Debian bookworm"):
        debian_sources(BOOKWORM, tmp_path)


@pytest.mark.parametrize("text", ["", 'ID=ubuntu\nVERSION_ID="24.04"\n', 'ID=debian\nVERSION_ID="11"\n'])
def test_other_systems_are_refused(tmp_path: Path, text: str) -> None:
    """Only Debian 12 and newer can build guests."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(text)
    with pytest.raises(ConfigError, match="expected Debian 12 or newer"):
        host_release(tmp_path)


def test_the_release_is_read(tmp_path: Path) -> None:
    """Quotes are not part of a value."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n')
    assert host_release(tmp_path) == BOOKWORM


def test_what_is_missing() -> None:
    """A package that is absent, removed, or too old is missing."""
    everything = [f"{name} installed 1:{HYPERVISOR.get(name, 1)}.0-1" for name in (*HYPERVISOR, *TOOLS)]
    assert not_satisfied("\n".join(everything)) == []
    changed = [
        line.replace("x86 installed 1:9.0", "x86 installed 1:7.2+dfsg").replace("zstd installed", "zstd config-files")
        for line in everything
        if not line.startswith("gcc ")
    ]
    assert not_satisfied("\n".join(changed)) == ["qemu-system-x86", "zstd", "gcc"]


def test_bookworm_takes_the_hypervisor_from_backports(tmp_path: Path) -> None:
    """The rest comes from the release, and the one line for root holds the whole plan."""
    todo = plan(["qemu-system-x86", "zstd"], BOOKWORM, host(tmp_path, "debian.sources", DEB822))
    assert [command[-1] for command in todo.commands] == ["update", "zstd", "qemu-system-x86"]
    assert "bookworm-backports" in todo.commands[-1]
    assert todo.backports is not None
    assert "umask 022 && printf" in todo.shell()
    assert "sandbox-backports.sources" in todo.shell()
    assert "\n" not in todo.shell()


def test_trixie_needs_no_backports(tmp_path: Path) -> None:
    """Its own QEMU and libvirt are new enough."""
    todo = plan(["qemu-system-x86", "zstd"], TRIXIE, tmp_path)
    assert todo.backports is None
    assert len(todo.commands) == 2


def test_configured_backports_are_not_written_again(tmp_path: Path) -> None:
    """Whatever file they are in."""
    host(tmp_path, "debian.sources", DEB822)
    host(tmp_path, "mine.list", f"deb [signed-by={KEYRING}] http://three.example/debian bookworm-backports main\n")
    assert plan(["libvirt0"], BOOKWORM, tmp_path).backports is None


def test_everybody_can_read_the_backports_that_were_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of an image reads them as the user who builds, whatever root's umask was."""
    file = tmp_path / "sandbox-backports.sources"
    answers = iter([["libvirt0"], []])
    monkeypatch.setattr(packages, "BACKPORTS_FILE", file)
    monkeypatch.setattr(packages, "missing", lambda: next(answers))
    monkeypatch.setattr(packages, "host_release", lambda: BOOKWORM)
    monkeypatch.setattr(packages, "plan", lambda *_: Plan("Types: deb\n", (("true",),)))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    before = os.umask(0o077)
    try:
        assert install() == 0
    finally:
        os.umask(before)
    assert file.read_text() == "Types: deb\n"
    assert file.stat().st_mode & 0o777 == 0o644
