"""Copies of a guest's directories: whatever the guest names, nothing is written beside the copy or over a file."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import HostFileError
from sandbox.guest import tree
from sandbox.guest.tree import TreeWriter
from sandbox.guest.treenames import MOST_DEPTH
from tests.fakes.tree import entry, give, outside

TRIES = int(os.environ.get("SANDBOX_RACE_TRIES", "4000"))
_DOTS = ["..", ".", "", "../..", "/..", "../", "a/..", "a/../..", "./..", "..//..", "//", "/", "a//b", "a/./b", "../x"]
_STEMS = [
    "x",
    "etc/passwd",
    "root/.ssh/authorized_keys",
    "secret",
    "a" * 256,
    "é" * 128,
    "a\0b",
    "\0",
    "\ud800",
    "a\udfff",
]
_WORDS = [
    "/etc/passwd",
    "~/x",
    "C:\\x",
    "..\\x",
    "%2e%2e/x",
    "..;/x",
    "．．/x",
    "‥/x",
    "..\u200b/x",
    "con",
    "-rf",
    "*",
    "\n",
    "\x1b[2J",
]
_LONG = [
    "a" * 4096,
    "/" * 5000,
    "../" * 5000,
    "a/" * 5000 + "x",
    "\0" * 5000,
    "a/" * MOST_DEPTH + "x",
    "x" * 255 + "/" + "y" * 256,
]
HOSTILE = sorted(
    {f"{dots}{separator}{stem}" for dots, separator, stem in itertools.product(_DOTS, ["", "/"], _STEMS)}
    | {f"{stem}/{dots}" for dots, stem in itertools.product(_DOTS, _STEMS)}
    | {*_WORDS, *_LONG, *_DOTS}
)
NAMES = st.lists(st.sampled_from(["..", ".", "", "a", "b", "link", "é", "\0", "\udc80", "\ud800"]), max_size=6).map(
    "/".join
)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[TreeWriter]:
    (tmp_path / "secret").write_text("secret")
    writer = TreeWriter(tmp_path / "copy", 1 << 20, 1000)
    yield writer
    writer.close()


def test_there_are_many_hostile_names() -> None:
    """The list below is not empty by mistake."""
    assert len(HOSTILE) >= 200


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_hostile_name_stays_inside(writer: TreeWriter, tmp_path: Path, kind: str) -> None:
    """Each name is refused by a typed error or makes something within the copy."""
    before = outside(tmp_path)
    taken = [name for name in HOSTILE if give(writer, name, kind)]
    assert outside(tmp_path) == before
    assert not any(".." in Path(name).parts or name.startswith("/") for name in taken)
    if kind == "file":
        files = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
        assert len(files) == len(taken) == writer.report().files


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(NAMES, st.sampled_from(["file", "directory", "symlink"])), max_size=15))
def test_any_sequence_stays_inside(tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, str]]) -> None:
    """Whatever comes in whatever order, with a link in the copy that somebody laid: only the copy changes."""
    top = tmp_path_factory.mktemp("tree")
    (top / "outside").mkdir()
    writer = TreeWriter(top / "copy", 1 << 20, 1000)
    (top / "copy/link").symlink_to(top / "outside")
    before = outside(top)
    for name, kind in entries:
        give(writer, name, kind)
    writer.close()
    assert outside(top) == before


def test_what_exists_is_never_overwritten(writer: TreeWriter, tmp_path: Path) -> None:
    """A second file of one name is refused, so is one through a link, and a target that exists."""
    assert give(writer, "a", data=b"first")
    assert not give(writer, "a", data=b"second")
    assert not give(writer, "a", "directory")
    (tmp_path / "copy/link").symlink_to(tmp_path / "secret")
    (tmp_path / "copy/dangling").symlink_to(tmp_path / "new")
    assert not give(writer, "link")
    assert not give(writer, "dangling")
    assert (tmp_path / "copy/a").read_bytes() == b"first"
    assert outside(tmp_path) == {"secret": "secret"}
    for target in ("copy", "secret", "copy/link", "missing/copy"):
        with pytest.raises(HostFileError, match="new directory"):
            TreeWriter(tmp_path / target, 1, 1)


@pytest.mark.parametrize("mode", [0o7777, 0o4755, 0o2755, 0o1777, 0o6000, -1, (1 << 63) - 1, 0])
def test_special_bits_are_dropped(writer: TreeWriter, tmp_path: Path, mode: int) -> None:
    """No copy is set-uid, set-gid or sticky; its owner can read a file and change a directory."""
    for name, kind, least in (("f", "file", 0o400), ("d", "directory", 0o700)):
        writer.begin(entry(name, kind, mode))
        found = stat.S_IMODE((tmp_path / "copy" / name).stat().st_mode)
        assert found & 0o7000 == 0
        assert found & least == least
        assert found & 0o077 & ~mode == 0


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "other"])
def test_special_files_are_not_made(writer: TreeWriter, tmp_path: Path, kind: str) -> None:
    """They are named in the report; nothing of them is made."""
    writer.begin(entry("it", kind))
    assert writer.report().skipped == {"it": f"it is a {kind}"}
    assert list((tmp_path / "copy").iterdir()) == []


def test_limits_hold(tmp_path: Path) -> None:
    """Bytes, entries and the names in the report have an end; what was copied until then stays."""
    writer = TreeWriter(tmp_path / "bytes", 100, 10)
    writer.begin(entry("a"))
    writer.write(bytes(100))
    with pytest.raises(HostFileError) as caught:
        writer.write(b"x")
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "bytes/a").stat().st_size == 100
    writer.close()
    writer = TreeWriter(tmp_path / "entries", 100, 10)
    assert [give(writer, f"{number}", "directory") for number in range(11)] == [True] * 10 + [False]
    writer.close()


def test_names_in_the_report_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest full of long names that cannot be copied does not fill our memory."""
    monkeypatch.setattr(tree, "MOST_REPORTED_CHARACTERS", 1000)
    writer = TreeWriter(tmp_path / "copy", 100, 10_000)
    for number in range(9):
        writer.begin(entry(f"{number:091}", "fifo"))
    with pytest.raises(HostFileError, match="reported"):
        writer.fail("x" * 91, "nobody knows why")
    assert len(writer.report().skipped) == 9
    writer.close()


_FULL = """
import resource, sys
from pathlib import Path
from sandbox.errors import HostFileError
from sandbox.guest.entry import TreeEntry
from sandbox.guest.tree import TreeWriter
writer = TreeWriter(Path(sys.argv[1]), 1 << 30, 10)
entry = TreeEntry(type="file", size=1, mode=0o644, mtime=0, name="a")
try:
    if sys.argv[2] == "files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    writer.begin(entry)
    writer.write(bytes(2000))
except HostFileError as error:
    print(error.errno)
"""


@pytest.mark.parametrize(("scarce", "number"), [("files", errno.EMFILE), ("bytes", errno.EFBIG)])
def test_scarce_host_gives_a_typed_error(tmp_path: Path, scarce: str, number: int) -> None:
    """No descriptors, or no room: the copy fails as `HostFileError` with the host's errno."""
    said = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / "copy"), scarce], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{number}\n", said.stderr


_SWAPPER = """
import ctypes, os, sys
os.chdir(sys.argv[1])
renameat2, here, exchange = ctypes.CDLL(None, use_errno=True).renameat2, -100, 2
print(flush=True)
parent = os.getppid()
while os.getppid() == parent:
    assert renameat2(here, b"d", here, b"link", exchange) == 0, os.strerror(ctypes.get_errno())
"""


def _race(top: Path, make: Callable[[Path, str], None]) -> int:
    """Make files in a directory while a process swaps it for a link and back; return how many came out outside."""
    copy, outside = top / "copy", top / "outside"
    for directory in (outside, copy / "d"):
        directory.mkdir(parents=True)
    (copy / "link").symlink_to(outside)
    command = [sys.executable, "-c", _SWAPPER, str(copy)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        for number in range(TRIES):
            with suppress(OSError):
                make(copy, f"d/{number}")
        assert swapper.poll() is None, "nothing was swapped"
        swapper.kill()
    return len(list(outside.iterdir()))


def test_directory_that_becomes_a_link_leads_nowhere(tmp_path: Path) -> None:
    """Somebody on the host who swaps a directory of the copy for a link gains nothing by it."""
    writer = TreeWriter(tmp_path / "copy", 1 << 20, TRIES)

    def make(_copy: Path, name: str) -> None:
        writer.take([entry("other", "fifo"), entry(name, size=0)], b"")
        writer._leave()  # else the directory that is open already would be used again

    assert _race(tmp_path, make) == 0
    assert 0 < writer.report().files < TRIES  # both states were met
    writer.close()


def test_the_race_can_be_lost(tmp_path: Path) -> None:
    """The control: who opens by path is led outside."""

    def make(copy: Path, name: str) -> None:
        os.close(os.open(copy / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))

    assert _race(tmp_path, make) > 0


def test_descriptors_are_not_leaked(writer: TreeWriter) -> None:
    """Neither what is taken nor what is refused leaves a descriptor open."""
    before = len([*os.scandir("/proc/self/fd")])
    for name in HOSTILE:
        give(writer, name)
        give(writer, name, "directory")
    assert len([*os.scandir("/proc/self/fd")]) == before
