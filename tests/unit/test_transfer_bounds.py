"""What a guest can make the host take: bytes, entries and time of a copy have an end, and nothing half-made stays."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import nullcontext
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import ConfigError, GuestFileError, HostFileError
from sandbox.guest import treereader
from sandbox.guest.files import READ_BYTES, Files
from sandbox.guest.fileserver import SILENCE_SECONDS
from sandbox.guest.transfer import download, upload
from sandbox.message import Tag, encode
from tests.conftest import PROGRAMS
from tests.fakes.file_guest import FileGuest, Script, data, in_tree, says, stat_of
from tests.unit.test_hostile_files import in_virtual_time

MIB = 1 << 20
PIECE = data(bytes(100_000))


def files_in(top: Path) -> dict[str, bytes]:
    """Return the names and contents of the files below a directory."""
    return {path.name: path.read_bytes() for path in top.rglob("*") if path.is_file()}


def endless(size: int = 1) -> Script:
    """Return a guest whose file, and whose directory with one file, has no end and says that it has this size."""

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        if request["op"] == "stat":
            return [says(stat=stat_of("directory" if request["path"] == "tree" else "file", size=size))]
        first = says(entry=in_tree("file", "a", size=size)) if request["op"] == "pack" else says(stat=stat_of("file"))
        return chain([first], repeat(PIECE))

    return script


@pytest.mark.parametrize("source", ["file", "tree"])
@pytest.mark.parametrize("overwrite", [False, True])
async def test_a_file_without_an_end_is_ended(tmp_path: Path, source: str, overwrite: bool) -> None:
    """Whatever size it said it had: the copy has no more bytes than allowed, and then the file is removed."""
    guest, target = FileGuest(endless()), tmp_path / "copy"
    if overwrite and source == "file":
        target.write_text("old")
    with pytest.raises(HostFileError, match="max_bytes is 3000000") as caught:
        await download(guest.files, source, target, max_bytes=3_000_000, overwrite=overwrite)
    assert caught.value.errno == errno.EFBIG
    assert files_in(tmp_path) == ({"copy": b"old"} if overwrite and source == "file" else {})
    guest.release()


@pytest.mark.parametrize("source", ["file", "tree"])
@pytest.mark.parametrize(
    ("size", "bound", "number"), [(3_000_001, 3_000_000, errno.EFBIG), (1 << 60, 1 << 61, errno.ENOSPC)]
)
async def test_a_size_that_is_too_large_is_refused_at_once(
    tmp_path: Path, source: str, size: int, bound: int, number: int
) -> None:
    """What a file says it has is more than allowed, or than is free here: nothing is written, or made."""
    guest, target = FileGuest(endless(size)), tmp_path / "copy"
    with pytest.raises(HostFileError) as caught:
        await download(guest.files, source, target, max_bytes=bound)
    assert caught.value.errno == number
    assert files_in(tmp_path) == {}
    guest.release()


@pytest.mark.parametrize("kind", ["entries", "errors"])
async def test_a_tree_without_an_end_is_ended(tmp_path: Path, kind: str) -> None:
    """Entries without content, and failures to read some, are counted as well."""

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        if request["op"] == "stat":
            return [says(stat=stat_of("directory"))]
        if kind == "entries":
            return (says(entries=[in_tree("directory", f"{number}")], errors=[]) for number in count())
        return (says(entries=[], errors=[{"name": f"{number}", "errno": 13, "text": "no"}]) for number in count())

    guest = FileGuest(script)
    with pytest.raises(HostFileError, match="max_entries is 50") as caught:
        await download(guest.files, "tree", tmp_path / "copy", max_entries=50)
    assert caught.value.errno == errno.EFBIG
    assert len(list((tmp_path / "copy").iterdir())) == (50 if kind == "entries" else 0)
    guest.release()


LIES: dict[str, list[bytes]] = {
    "nothing again and again": [says(entries=[], errors=[])] * 3,
    "a negative size": [says(entries=[in_tree("file", "a", size=-1)], errors=[])],
    "sizes that cancel out": [says(entries=[in_tree("file", "a", size=-9), in_tree("file", "b", size=9)], errors=[])],
    "more than a message": [says(entries=[in_tree("file", "a", size=MIB)], errors=[])],
    "less content than said": [says(entries=[in_tree("file", "a", size=9)], errors=[]), data(b"x")],
    "more content than said": [says(entries=[in_tree("file", "a", size=9)], errors=[]), data(b"x" * 10)],
    "no content": [says(entries=[in_tree("file", "a", size=9)], errors=[]), encode(Tag.END)],
    "too many at once": [says(entries=[in_tree("fifo", "a")] * 1001, errors=[])],
    "no list": [says(entries={}, errors=[])],
    "no errors": [says(entries=[in_tree("fifo", "a")])],
    "content of a link": [says(entry=in_tree("symlink", "a", target="b")), data(b"x"), encode(Tag.END)],
    "an odd error": [says(entry=in_tree("file", "a")), encode(Tag.END), says(error={"name": "a"})],
    "a time that no kernel has": [says(entries=[in_tree("fifo", "a", mtime=2**92)], errors=[])],
    "an unknown field": [says(entries=[in_tree("fifo", "a", uid=0)], errors=[])],
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_tree_that_no_honest_guest_sends_is_refused(tmp_path: Path, lie: str) -> None:
    """The call ends with `EIO`, and no file of it is left."""

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        return [says(stat=stat_of("directory"))] if request["op"] == "stat" else LIES[lie]

    guest = FileGuest(script)
    with pytest.raises(GuestFileError) as caught:
        await download(guest.files, "tree", tmp_path / "copy")
    assert caught.value.errno == errno.EIO
    assert list((tmp_path / "copy").iterdir()) == []
    guest.release()


async def test_a_file_that_cannot_be_read_to_its_end_is_named(tmp_path: Path) -> None:
    """It is removed here, and what comes after it is copied."""
    broken = {"name": "a", "errno": 5, "text": "Input/output error"}

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        if request["op"] == "stat":
            return [says(stat=stat_of("directory"))]
        large = [says(entry=in_tree("file", "a")), PIECE, encode(Tag.END), says(error=broken)]
        return [*large, says(entries=[in_tree("file", "b")], errors=[]), data(b"x"), says(done=True)]

    guest = FileGuest(script)
    report = await download(guest.files, "tree", tmp_path / "copy")
    assert (report.files, report.errors) == (1, {"a": "Input/output error"})
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["b"]
    with pytest.raises(GuestFileError) as caught:
        await download(guest.files, "tree", tmp_path / "strict", strict=True)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "tree/a")
    guest.release()


TIMED: dict[str, Callable[[Files, Path], Coroutine[Any, Any, object]]] = {
    "a file": lambda files, target: download(files, "file", target, timeout=7),
    "a tree": lambda files, target: download(files, "tree", target, timeout=7),
    "read": lambda files, _: files.read("file", timeout=7),
    "list": lambda files, _: files.list("file", timeout=7),
}


@pytest.mark.parametrize("name", TIMED)
def test_a_trickle_takes_no_longer_than_allowed(tmp_path: Path, name: str) -> None:
    """A guest that says a little again and again never is silent for too long; the call's own time-out ends it."""

    def script(request: dict[str, Any]) -> Iterator[bytes]:
        if request["op"] == "stat":
            yield says(stat=stat_of("directory" if request["path"] == "tree" else "file"))
        elif request["op"] == "list":
            yield from (says(entries=[stat_of("file", name=f"{number}")]) for number in count())
        elif request["op"] == "pack":
            yield from (says(entries=[in_tree("directory", f"{number}")], errors=[]) for number in count())
        else:
            yield from chain([says(stat=stat_of("file"))], repeat(data(b"x")))

    async def main() -> None:
        guest = FileGuest(script, pace=0.5)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(GuestFileError, match="longer than 7 s") as caught:
            await TIMED[name](guest.files, tmp_path / "copy")
        assert caught.value.errno == errno.ETIMEDOUT
        taken = asyncio.get_running_loop().time() - begun
        assert 7 <= taken < SILENCE_SECONDS or "a " in name  # no clock knows the threads of a copy
        guest.release()

    in_virtual_time(main())
    assert files_in(tmp_path) == {}


def test_an_upload_takes_no_longer_than_allowed(tmp_path: Path) -> None:
    """A guest that takes nothing, or does not say that it is done."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_bytes(bytes(MIB))

    async def main() -> None:
        for takes in (0, None):
            guest = FileGuest(lambda _: [], takes=takes)
            for source in (tmp_path / "tree", tmp_path / "tree/a"):
                with pytest.raises(GuestFileError, match="longer than 7 s"):
                    await upload(guest.files, source, "target", timeout=7)
            guest.release()

    in_virtual_time(main())


async def test_a_refused_upload_ends_at_once(tmp_path: Path) -> None:
    """What the guest says before it has everything is heard, and no more is read here."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_bytes(bytes(20 * MIB))

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        return [says(errno=errno.ENOSPC, text="No space left on device")] if request.get("op") == "unpack" else []

    guest = FileGuest(script)
    with pytest.raises(GuestFileError) as caught:
        await upload(guest.files, tmp_path / "tree", "target")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "target")
    guest.release()


def test_links_that_are_followed_do_not_multiply_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to the same directories, on each level, are as many ways as a tree has no room for; kept, they are few."""
    monkeypatch.setattr(treereader, "MOST_ENTRIES", 5000)
    for level in range(30):
        (tmp_path / str(level)).mkdir()
        for name in "ab":
            (tmp_path / str(level) / name).symlink_to(f"../{level + 1}")
    reader = treereader.TreeReader(tmp_path, links="follow", exclude=(), strict=False)
    with pytest.raises(HostFileError, match="more than 5000 entries"):
        list(iter(reader.next, None))
    reader.close()
    kept = treereader.TreeReader(tmp_path, links="keep", exclude=(), strict=False)
    assert sum(len(part.entries) for part in iter(kept.next, None) if isinstance(part, treereader.Batch)) == 90
    kept.close()


async def test_reading_takes_little_more_memory_than_the_content() -> None:
    """The content is held once, whatever it has grown from."""
    size = 16 * MIB
    pieces = [data(bytes(128 * 1024))] * (size // (128 * 1024))
    guest = FileGuest(lambda _: chain([says(stat=stat_of("file"))], pieces, [encode(Tag.END), says()]))
    tracemalloc.start()
    try:
        content = await guest.files.read("file")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(content) == size
    assert peak < 1.2 * size
    guest.release()


async def test_a_stream_has_a_limit_if_wanted() -> None:
    """What is within it is given, and then `EFBIG` is raised; exactly so much is no more than that."""
    guest = FileGuest(lambda _: [says(stat=stat_of("file")), data(b"abc"), data(b"def"), encode(Tag.END), says()])
    for limit, expected in ((6, b"abcdef"), (4, b"abcd"), (3, b"abc"), (0, b"")):
        taken: list[bytes] = []
        with nullcontext() if limit == 6 else pytest.raises(GuestFileError, match=f"more than {limit} bytes"):
            async for piece in guest.files.stream("file", limit=limit):
                taken.append(piece)
        assert b"".join(taken) == expected
    guest.release()


async def test_bounds_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """Before anything is asked of the guest."""
    guest = FileGuest(lambda _: [])
    odd: list[Coroutine[Any, Any, object]] = [
        download(guest.files, "a", tmp_path / "b", max_bytes=-1),
        download(guest.files, "a", tmp_path / "b", max_entries=-1),
        download(guest.files, "a", tmp_path / "b", timeout=0),
        download(guest.files, "a", tmp_path / "b", links="follow"),  # type: ignore[arg-type]
        upload(guest.files, tmp_path, "b", timeout=float("nan")),
        upload(guest.files, tmp_path, "b", links="all"),  # type: ignore[arg-type]
        upload(guest.files, tmp_path, "b", exclude="*.pyc"),
        guest.files.read("a", timeout=-1),
    ]
    for call in odd:
        with pytest.raises(ConfigError):
            await call
    assert READ_BYTES == 64 * MIB
    guest.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="to mount a small file system needs root")
def test_a_small_disk_is_not_left_full(tmp_path: Path) -> None:
    """On 3 MiB: a stated size that does not fit is refused; a lie ends with `ENOSPC`; the room is there again."""
    command = ["unshare", "--mount", sys.executable, str(PROGRAMS / "host_small_target.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=PROGRAMS.parents[1])
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["stated file"] == said["stated tree"] == [errno.ENOSPC, [], 0]
    for name in ("lie file", "lie tree"):
        number, left, used = said[name]
        assert (number, left, used) == (errno.ENOSPC, [], 0)
    assert said["fits"] == [None, ["copy"], 2 * MIB]
