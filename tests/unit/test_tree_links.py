"""Links in copies of a guest's directories: none leads out, none is written through, and what exists stays whole."""

from __future__ import annotations

import errno
import os
import posixpath
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import HostFileError
from sandbox.guest.tree import TreeWriter
from sandbox.guest.treenames import why_not_linked
from tests.fakes.tree import entry, give, outside

TRIES = int(os.environ.get("SANDBOX_RACE_TRIES", "4000"))
INSIDE = [
    (0, "a"),
    (0, "."),
    (0, "./a//b/"),
    (0, "..."),
    (0, "..a"),
    (0, "none/at/all"),
    (1, ".."),
    (1, "../a/b"),
    (1, ".././b"),
    (2, "../../.bin/x"),
    (0, "é\udcff"),
    (0, "-rf"),
    (0, "a\nb"),
]
OUTSIDE = [
    (0, ""),
    (0, "/"),
    (0, "/etc/passwd"),
    (3, "//x"),
    (0, ".."),
    (0, "./.."),
    (0, "../copy"),
    (1, "../.."),
    (1, ".././.."),
    (1, "../../copy/a"),
    (2, "a/.."),
    (3, "../a/../b"),
    (0, "a/../../x"),
    (0, "a\0b"),
    (0, "\ud800"),
    (0, "x" * 4096),
    (64, "../" * 65 + "x"),
]


@pytest.fixture(params=[False, True], ids=["new", "overwrite"])
def writer(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TreeWriter]:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "sibling").mkdir()
    writer = TreeWriter(tmp_path / "copy", 1 << 20, 1000, overwrite=request.param)
    yield writer
    writer.close()


def leads_out(top: Path) -> list[str]:
    """Return the links below a directory that lead out of it, as a program that follows them sees it."""
    real = os.path.realpath(top)
    links = [str(path) for path in top.rglob("*") if path.is_symlink()]
    return [link for link in links if (led := _led(link)) is not None and not f"{led}/".startswith(f"{real}/")]


def _led(link: str) -> str | None:
    """Return where a link leads to, also if nothing is there; None if it leads round in a circle."""
    try:
        return os.path.realpath(link, strict=True)
    except OSError as error:
        return None if error.errno == errno.ELOOP else os.path.realpath(link)


@pytest.mark.parametrize(("depth", "target"), INSIDE)
def test_link_that_stays_inside_is_kept(depth: int, target: str) -> None:
    """It goes up at its beginning only, and no further than the top."""
    assert why_not_linked(depth, target) == ""


@pytest.mark.parametrize(("depth", "target"), OUTSIDE)
def test_link_that_may_lead_out_is_left_out(writer: TreeWriter, tmp_path: Path, depth: int, target: str) -> None:
    """It is named in the report with the reason, and nothing is made of it."""
    name = "/".join([*map(str, range(depth)), "link"])
    for level in range(depth if depth < 64 else 0):
        assert give(writer, "/".join(map(str, range(level + 1))), "directory")
    assert why_not_linked(depth, target)
    if depth < 64:
        assert not give(writer, name, "symlink", target=target)
        assert writer.report().skipped == {name: why_not_linked(depth, target)}
        assert not (tmp_path / "copy" / name).is_symlink()


def test_no_chain_of_links_leads_out(writer: TreeWriter, tmp_path: Path) -> None:
    """A link to the top is harmless by itself, and no other one may go up from behind it."""
    for name in ("deep", "deep/er"):
        assert give(writer, name, "directory")
    assert give(writer, "deep/er/top", "symlink", target="../..")
    for target in ("deep/er/top/..", "deep/er/top/../secret", "deep/er/top/deep/er/top/../secret"):
        assert posixpath.normpath(target).startswith("deep"), "by its words it stays inside"
        assert not give(writer, "out", "symlink", target=target)
    assert give(writer, "in", "symlink", target="deep/er/top/deep")
    assert leads_out(tmp_path / "copy") == []


def test_words_alone_would_lead_out(tmp_path: Path) -> None:
    """The control: a link that stays inside by its words leads out by way of another one."""
    (tmp_path / "copy/deep/er").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "copy/deep/er/top").symlink_to("../..")
    (tmp_path / "copy/out").symlink_to("deep/er/top/../secret")
    assert leads_out(tmp_path / "copy") == [str(tmp_path / "copy/out")]
    assert (tmp_path / "copy/out").read_text() == "secret"


ATTACKS: dict[str, list[tuple[str, str, str]]] = {
    "two steps": [("a", "symlink", ".."), ("a/x", "file", "")],
    "two steps inside": [("d", "directory", ""), ("d/a", "symlink", ".."), ("d/a/x", "file", "")],
    "absolute": [("a", "symlink", "/tmp"), ("a/x", "file", "")],
    "chain": [("a", "symlink", "b"), ("b", "symlink", "c"), ("c", "symlink", "../sibling"), ("a/x", "file", "")],
    "dangling": [("a", "symlink", "b"), ("a", "file", ""), ("a/x", "file", "")],
    "to itself": [("a", "symlink", "a"), ("a/x", "file", "")],
    "over a directory": [("d", "directory", ""), ("d", "symlink", "."), ("d/x", "file", "")],
    "replaced": [("a", "symlink", "b"), ("b", "directory", ""), ("a", "symlink", "../sibling"), ("a/x", "file", "")],
    "made a directory": [("b", "directory", ""), ("a", "symlink", "b"), ("a", "directory", ""), ("a/x", "file", "")],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_written_through_a_link(writer: TreeWriter, tmp_path: Path, attack: str) -> None:
    """Only the copy changes, and in it nothing appears at another place than the guest named."""
    before = outside(tmp_path)
    for name, kind, target in ATTACKS[attack]:
        give(writer, name, kind, target=target)
    assert outside(tmp_path) == before
    assert leads_out(tmp_path / "copy") == []
    made = [path for path in (tmp_path / "copy").rglob("x") if not path.is_symlink()]
    assert [str(path.relative_to(tmp_path / "copy")) for path in made] == (
        ["d/x"] if attack == "over a directory" else []
    )


_PARTS = st.sampled_from(["..", ".", "", "a", "b", "l", "m"])
_PATHS = st.lists(_PARTS, max_size=5).map("/".join)
_KINDS = st.sampled_from(["file", "directory", "symlink"])


@settings(max_examples=400, deadline=None)
@given(st.booleans(), st.lists(st.tuples(_PATHS, _KINDS, _PATHS), max_size=20))
def test_any_sequence_of_links_stays_inside(overwrite: bool, entries: list[tuple[str, str, str]]) -> None:
    """Whatever comes in whatever order: only the copy changes, and no link in it leads out."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        (top / "a").mkdir()
        (top / "b").write_text("secret")
        writer = TreeWriter(top / "copy", 1 << 20, 1000, overwrite=overwrite)
        before = outside(top)
        for name, kind, target in entries:
            give(writer, name, kind, target=target)
        writer.close()
        assert outside(top) == before
        assert leads_out(top / "copy") == []


def test_overwriting_replaces_what_is_there_and_follows_nothing(tmp_path: Path) -> None:
    """Files and links give way, also those with another name elsewhere; directories are merged; the rest stays."""
    copy = tmp_path / "copy"
    (copy / "d").mkdir(parents=True, mode=0o750)
    (copy / "d/kept").write_text("kept")
    (tmp_path / "secret").write_text("secret")
    (copy / "file").write_text("old")
    (copy / "hard").hardlink_to(tmp_path / "secret")
    (copy / "link").symlink_to(tmp_path / "secret")
    (copy / "away").symlink_to(tmp_path)
    os.mkfifo(copy / "fifo")
    (copy / "full").mkdir()
    before = outside(tmp_path)
    writer = TreeWriter(copy, 1 << 20, 100, overwrite=True)
    assert all(give(writer, name, data=b"new") for name in ("file", "hard", "link", "d/new"))
    assert give(writer, "d", "directory")
    assert give(writer, "d/new", "symlink", target="kept")
    for name, kind in (
        ("away", "directory"),
        ("away/x", "file"),
        ("fifo", "file"),
        ("full", "file"),
        ("full", "symlink"),
    ):
        assert not give(writer, name, kind, target="x"), name
    assert set(writer.report().errors) == {"away", "away/x", "fifo", "full"}
    writer.close()
    assert outside(tmp_path) == before
    assert [(copy / name).read_text() for name in ("file", "hard", "link")] == ["new"] * 3
    assert not (copy / "link").is_symlink()
    assert sorted(path.name for path in copy.iterdir()) == ["away", "d", "fifo", "file", "full", "hard", "link"]
    assert (copy / "d/new").read_text() == (copy / "d/kept").read_text() == "kept"
    (tmp_path / "copies").symlink_to(copy)
    for target in (tmp_path / "copies", tmp_path / "secret"):
        with pytest.raises(HostFileError, match="no link"):
            TreeWriter(target, 1, 1, overwrite=True)


def test_a_file_that_is_not_finished_leaves_what_was_there(writer: TreeWriter, tmp_path: Path) -> None:
    """What was begun is removed, whether the guest could not read it or the copy ends."""
    is_new = give(writer, "a", data=b"old")
    for failure in ("the guest says why", None):
        writer.begin(entry("a" if failure else "b"))
        writer.write(b"part")
        if failure:
            writer.end(failure)
    writer.close()
    assert is_new
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["a"]
    assert (tmp_path / "copy/a").read_text() == "old"
    assert list(writer.report().errors) == ["a"]


def test_strict_raises_what_cannot_be_made(tmp_path: Path) -> None:
    """An entry that would only be named in the report ends the copy instead."""
    writer = TreeWriter(tmp_path / "copy", 1 << 20, 100, strict=True)
    give(writer, "a")
    with pytest.raises(HostFileError, match="'a' cannot be made"):
        writer.begin(entry("a"))
    writer.close()


_SWAPPER = """
import ctypes, os, sys
os.chdir(sys.argv[1])
renameat2, here, exchange = ctypes.CDLL(None, use_errno=True).renameat2, -100, 2
print(flush=True)
parent = os.getppid()
while os.getppid() == parent:
    renameat2(here, b"file", here, b"link", exchange)
"""


def _race(top: Path, write: Callable[[Path], None]) -> str:
    """Replace a file while a process swaps it for a link; return what is in the file that the link leads to."""
    copy = top / "copy"
    copy.mkdir()
    (top / "secret").write_text("secret")
    (copy / "file").write_text("")
    (copy / "link").symlink_to(top / "secret")
    with subprocess.Popen([sys.executable, "-c", _SWAPPER, str(copy)], stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        for _ in range(TRIES):
            are_links = {(copy / name).is_symlink() for name in ("file", "link")}
            if are_links == {False}:  # the link was replaced
                (copy / "new").symlink_to(top / "secret")
                (copy / "new").rename(copy / "link")
            with suppress(OSError):
                write(copy)
        assert swapper.poll() is None, "nothing was swapped"
        swapper.kill()
    return (top / "secret").read_text()


def test_a_file_that_becomes_a_link_is_not_written_through(tmp_path: Path) -> None:
    """A process on the host that swaps the file for a link while it is replaced gains nothing by it."""
    writers: list[TreeWriter] = []

    def write(copy: Path) -> None:
        if not writers:
            writers.append(TreeWriter(copy, 1 << 30, TRIES, overwrite=True))
        writers[0].take([entry("file", size=7)], b"written")

    assert _race(tmp_path, write) == "secret"
    assert writers[0].report().files > 0
    writers[0].close()


def test_the_race_for_a_file_can_be_lost(tmp_path: Path) -> None:
    """The control: a file that is opened by its name to be written again is the link's, at times."""

    def write(copy: Path) -> None:
        with (copy / "file").open("r+") as file:
            file.write("written")

    assert _race(tmp_path, write) == "written"
