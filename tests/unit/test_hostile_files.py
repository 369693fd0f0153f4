"""File servers that lie or stall: every call ends, holds up nobody else, and costs the host a bounded amount."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sandbox.errors import GuestFileError
from sandbox.guest import files as guest_files
from sandbox.guest.files import Files
from sandbox.guest.fileserver import SILENCE_SECONDS
from sandbox.guest.transfer import download
from sandbox.message import Tag, encode
from sandbox.wire import WINDOW_BYTES
from tests.fakes.file_guest import FileGuest, data, in_tree, says, stat_of
from tests.fakes.virtual_time import VirtualTimeLoop

T = TypeVar("T")
Call = Callable[[Files, Path], Coroutine[Any, Any, object]]
LONG = "x" * 2000
DIRECTORY = "d" * 40


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


async def _refused(call: Coroutine[Any, Any, object]) -> int | None:
    with pytest.raises(GuestFileError) as caught:
        await call
    return caught.value.errno


async def _all(pieces: AsyncGenerator[bytes, None]) -> list[bytes]:
    return [piece async for piece in pieces]


async def _watch(files: Files, path: str) -> None:
    async with files.watch(path):
        raise AssertionError("nobody watches")


WAITING: dict[str, Call] = {
    "stat": lambda files, _: files.stat(LONG),
    "exists": lambda files, _: files.exists(LONG),
    "list": lambda files, _: files.list(LONG),
    "read": lambda files, _: files.read(LONG),
    "stream": lambda files, _: _all(files.stream(LONG)),
    "write": lambda files, _: files.write(LONG, b""),
    "remove": lambda files, _: files.remove(LONG),
    "move": lambda files, _: files.move(LONG, LONG),
    "mkdir": lambda files, _: files.mkdir(LONG),
    "chmod": lambda files, _: files.chmod(LONG, 0o644),
    "watch": lambda files, _: _watch(files, "x" * 2 * WINDOW_BYTES),
    "download": lambda files, target: download(files, DIRECTORY, target),
}


@pytest.mark.parametrize("name", WAITING)
def test_no_call_waits_for_ever_for_room(name: str, tmp_path: Path) -> None:
    """An honest answer to a write, but no room for a further request: that one ends with `ETIMEDOUT`."""

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        return [says(stat=stat_of("directory" if request["path"] == DIRECTORY else "file"))]

    async def main() -> None:
        guest, loop = FileGuest(script, takes=0), asyncio.get_running_loop()
        await guest.files.write("file", bytes(WINDOW_BYTES - 200))
        begun = loop.time()
        assert await _refused(WAITING[name](guest.files, tmp_path / "copy")) == errno.ETIMEDOUT
        assert loop.time() - begun == pytest.approx(SILENCE_SECONDS) or name == "download"  # no clock knows its threads
        assert guest.client.lost is None
        guest.release()

    in_virtual_time(main())


ENDLESS: dict[str, Call] = {
    "read": lambda files, _: files.read("file"),
    "stream": lambda files, _: _all(files.stream("file")),
    "download a file": lambda files, target: download(files, "file", target),
    "download a directory": lambda files, target: download(files, DIRECTORY, target),
    "list": lambda files, _: files.list("file"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_nothing_again_and_again_is_no_answer(name: str, tmp_path: Path) -> None:
    """Pieces without content and lists without entries, of which no limit counts any, end the call with `EIO`."""

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        if request["op"] == "stat":
            return [says(stat=stat_of("directory" if request["path"] == DIRECTORY else "file"))]
        if request["op"] == "list":
            return repeat(says(entries=[]))
        if request["op"] == "pack":
            return chain([says(entry=in_tree("file", "a"))], repeat(data(b"")))
        return chain([says(stat=stat_of("file"))], repeat(data(b"")))

    async def main() -> None:
        guest = FileGuest(script)
        assert await _refused(ENDLESS[name](guest.files, tmp_path / "copy")) == errno.EIO
        guest.release()

    in_virtual_time(main())


def test_an_empty_directory_has_one_list_without_entries() -> None:
    """What honest guests say of an empty directory, and of one whose last list happens to be empty, is taken."""

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        some = [says(entries=[stat_of("file", name="a")])] if request["path"] == "some" else []
        return [*some, says(entries=[]), says()]

    async def main() -> None:
        guest = FileGuest(script)
        assert await guest.files.list("none") == []
        assert [entry.name for entry in await guest.files.list("some")] == ["a"]
        guest.release()

    in_virtual_time(main())


def test_many_small_pieces_leave_others_their_turn() -> None:
    """While a reader works off what came at once, the event loop goes on."""
    count, turns = 5000, 0

    async def main() -> None:
        nonlocal turns
        pieces = [data(b"x")] * count
        guest = FileGuest(lambda _: [says(stat=stat_of("file")), *pieces, encode(Tag.END), says()])

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        others = asyncio.ensure_future(take_turns())
        content = guest.files.stream("file")
        await anext(content)
        before = turns
        assert len(await _all(content)) == count - 1
        assert turns - before > count // 1000
        others.cancel()
        guest.release()

    in_virtual_time(main())


@pytest.mark.parametrize("long", ["name", "target"])
def test_a_list_is_bounded_by_its_size(monkeypatch: pytest.MonkeyPatch, long: str) -> None:
    """However few entries there are, their names and targets have no more characters than fit; then it is `EFBIG`."""
    monkeypatch.setattr(guest_files, "LIST_CHARACTERS", 10_000)
    entry = stat_of("symlink", **{"name": "a", "target": "b", long: "\U0001f600" * 200})

    async def main() -> None:
        guest = FileGuest(lambda request: [says(entries=[entry])] * int(request["path"]) + [says()])
        assert len(await guest.files.list("49")) == 49
        assert await _refused(guest.files.list("50")) == errno.EFBIG
        assert (await guest.files.list("1"))[0].type == "symlink"
        guest.release()

    in_virtual_time(main())


@pytest.mark.parametrize(
    "lie", [{"target": "x"}, {"size": 2**63}, {"mode": 2**64}, {"uid": 10**4000}, {"gid": -(2**63) - 1}]
)
def test_what_no_kernel_says_of_a_file_is_refused(lie: dict[str, object]) -> None:
    """Only links point somewhere, and no number has more than 64 bits."""

    async def main() -> None:
        for file in (stat_of("file", name="a", **lie), stat_of("file", **lie)):
            guest = FileGuest(lambda _, file=file: [says(entries=[file], stat=file), says()])  # type: ignore[misc]
            assert await _refused(guest.files.list("d") if "name" in file else guest.files.stat("f")) == errno.EIO
            guest.release()

    in_virtual_time(main())
