"""Files in a real guest: every operation, odd names, and typed refusals."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest

from sandbox.errors import ConfigError, GuestFileError
from sandbox.guest import execution, fileserver
from sandbox.result import Outcome
from sandbox.vm import VM
from sandbox.wire import WINDOW_BYTES, Kind

MIB = 1024 * 1024
NAMES = ["with space", "new\nline", "tab\tand 'quotes' \"too\"", "üñí\U0001f600", "bad\udcff\udc80bytes"]
NAMES += ["-rf", "--", "$HOME `id`", "*", "x" * 255, "\\", "..."]


async def refused(call: Awaitable[object]) -> int | None:
    """Return the number that a call is refused with."""
    with pytest.raises(GuestFileError) as refusal:
        await call
    assert refusal.value.filename
    return refusal.value.errno


async def test_every_operation_takes_every_name(vm: VM) -> None:
    """Spaces, line ends, dashes, Unicode, bytes that are no text and 255 of them are names like others."""
    files = vm.files
    for name in NAMES:
        written = await files.write(name, name.encode("utf-8", "surrogateescape"), mode=0o640)
        assert (written.type, written.mode, written.uid) == ("file", 0o640, 1000)
        assert (await files.stat(name)).size == written.size
        assert await files.read(name, offset=1) == name.encode("utf-8", "surrogateescape")[1:]
        await files.append(name, b"!")
        await files.chmod(name, 0o4711)
        assert (await files.stat(name)).mode == 0o4711
    assert {entry.name for entry in await files.list()} >= set(NAMES)
    for name in NAMES:
        moved = name[:-1] + "#"
        await files.move(name, moved)
        assert (await files.exists(name), await files.exists(moved)) == (False, True)
        await files.remove(moved)
        await files.mkdir(name, mode=0o1700)
        await files.write(f"{name}/{name}/{name}", b"", parents=True)
        assert [entry.name for entry in await files.list(name)] == [name]
        async with files.watch(name) as changes:
            await files.remove(f"{name}/{name}", recursive=True)
            assert (await anext(changes)).path in (name, "")
        await files.remove(name)
    assert {entry.name for entry in await files.list()}.isdisjoint(NAMES)
    for wrong in ("", "a\0b"):
        for call in (files.read(wrong), files.write(wrong, b""), files.stat(wrong), files.list(wrong)):
            with pytest.raises(ConfigError, match=r"empty|NUL"):
                await call
        with pytest.raises(ConfigError, match=r"empty|NUL"):
            await files.move("x", wrong)
    for odd in (
        files.read("x", offset=-1),
        files.read("x", limit=-1),
        files.chmod("x", -1),
        files.write("x", b"", mode=1 << 20),
    ):
        with pytest.raises(ConfigError):
            await odd


async def test_refusals_carry_the_errno(vm: VM) -> None:
    """What the guest refuses raises its number; nothing blocks, and the next call works."""
    files = vm.files
    await vm.exec(
        "echo x > file; mkdir dir full; touch full/x; mkfifo fifo; ln -s loop1 loop2; ln -s loop2 loop1; "
        "ln -s no dangling;"
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'; mkdir -m 0 locked; ln -s file link"
    )
    expected: list[tuple[Awaitable[object], int]] = [
        (files.read("none"), errno.ENOENT),
        (files.read("dir"), errno.EISDIR),
        (files.read("file/x"), errno.ENOTDIR),
        (files.read("locked/x"), errno.EACCES),
        (files.read("/etc/shadow"), errno.EACCES),
        (files.read("fifo"), errno.EINVAL),
        (files.read("socket"), errno.EINVAL),
        (files.read("/dev/zero"), errno.EINVAL),
        (files.read("loop1"), errno.ELOOP),
        (files.read("y" * 256), errno.ENAMETOOLONG),
        (files.read("y/" * 3000), errno.ENAMETOOLONG),
        (files.read("file", limit=1), errno.EFBIG),
        (files.write("fifo", b"x"), errno.EINVAL),
        (files.write("socket", b"x"), errno.EINVAL),
        (files.write("/dev/null", b"x"), errno.EINVAL),
        (files.write("dir", b"x"), errno.EISDIR),
        (files.write("no/such/dir", b"x" * MIB), errno.ENOENT),
        (files.write("/etc/x", b"x"), errno.EACCES),
        (files.write("file", b"x", exclusive=True), errno.EEXIST),
        (files.write("loop1", b"x"), errno.ELOOP),
        (files.write("/proc/x", b"x"), errno.ENOENT),
        (files.append("/dev/null", b"x"), errno.EINVAL),
        (files.stat("none"), errno.ENOENT),
        (files.stat("loop1"), errno.ELOOP),
        (files.exists("loop1"), errno.ELOOP),
        (files.list("file"), errno.ENOTDIR),
        (files.list("locked"), errno.EACCES),
        (files.remove("none"), errno.ENOENT),
        (files.remove("full"), errno.ENOTEMPTY),
        (files.remove("/etc/passwd"), errno.EACCES),
        (files.move("none", "x"), errno.ENOENT),
        (files.move("file", "full/x", replace=False), errno.EEXIST),
        (files.move("file", "/dev/shm/x"), errno.EXDEV),
        (files.mkdir("dir"), errno.EEXIST),
        (files.mkdir("file", parents=True), errno.EEXIST),
        (files.mkdir("a/b"), errno.ENOENT),
        (files.chmod("/etc", 0o777), errno.EPERM),
        (vm.files_of("nobody-there").read("x"), errno.EIO),
    ]
    numbers = [(await refused(call), number) for call, number in expected]
    assert [found for found, _ in numbers] == [number for _, number in numbers]
    for path in ("none", "locked/x"):
        with pytest.raises(GuestFileError):
            async with files.watch(path):
                pass
    assert not await files.exists("dangling")
    link = await files.stat("link", follow=False)
    assert (link.type, link.target, (await files.stat("link")).type) == ("symlink", "file", "file")
    kinds = {entry.name: entry.type for entry in await files.list()}
    assert kinds["fifo"] + kinds["socket"] + kinds["link"] == "fifosocketsymlink"
    assert {entry.name: entry.target for entry in await files.list()}["dangling"] == "no"
    await files.remove("link")
    assert await files.read("file") == b"x\n", "removing a link spares what it points to"


async def test_writing_does_what_was_asked(vm: VM) -> None:
    """Parents, exclusive, append, exact modes, content in pieces, offsets and replacing moves."""
    files, root = vm.files, vm.files_of("root")

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(20):
            yield bytes([number]) * 100_000

    made = await files.write("a/b/c/file", pieces(), parents=True, exclusive=True, mode=0o6777)
    assert (made.size, made.mode, (await files.stat("a/b")).mode) == (2_000_000, 0o6777, 0o755)
    assert (await files.read("a/b/c/file", offset=1_999_999)) == b"\x13"
    assert await files.read("a/b/c/file", offset=1 << 40) == b""
    assert (await files.read("a/b/c/file", limit=2_000_000)).count(0) == 100_000
    assert (await files.write("a/b/c/file", b"short")).size == 5
    assert (await files.append("a/b/c/file", pieces())).size == 2_000_005
    assert (await files.write("new", b"")).mode == 0o644
    await files.move("new", "a/b/c/file")
    assert await files.read("a/b/c/file") == b""
    await files.mkdir("d/e", parents=True, mode=0o2750)
    await files.mkdir("d/e", parents=True)
    assert (await files.stat("d/e")).mode == 0o2750
    assert (await root.write("/etc/owned", b"x")).uid == 0
    assert await files.read("/etc/owned") == b"x"
    await root.write("/proc/sys/kernel/hostname", b"renamed")
    assert (await vm.exec("hostname")).text == "renamed\n"
    assert await root.read("/proc/sys/kernel/hostname") == b"renamed\n"

    async def broken() -> AsyncIterator[bytes]:
        yield b"part"
        while not await files.exists("partial"):
            pass
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        await files.write("partial", broken())
    assert (await files.read("partial")) in (b"", b"part")


async def test_much_at_once(vm: VM) -> None:
    """A directory of 5,000, a hundred calls side by side and a stream that is taken slowly do not hinder each other."""
    files = vm.files
    await vm.exec("mkdir many; cd many; seq -f %05g 5000 | xargs touch; head -c 20000000 /dev/urandom > ../large")
    total = 0
    async for data in files.stream("large"):
        if total == 0:
            assert len(await files.list("many")) == 5000
            assert await refused(files.list("many", limit=4999)) == errno.EFBIG
            async with anyio.create_task_group() as group:
                for number in range(100):
                    group.start_soon(files.write, f"many/{number}", b"x" * number)
            assert (await files.stat("many/99")).size == 99
            assert len(await files.list("many")) == 5100
        total += len(data)
    assert total == 20_000_000
    left = files.stream("large")
    assert await anext(left)
    async for _ in files.stream("large"):
        break
    async for data in files.stream("large"):
        if total == 20_000_000:
            await vm.exec(": > large")
        total += len(data)
    assert 20_000_000 < total < 40_000_000, "a file that is truncated meanwhile ends early"


async def test_a_file_server_that_was_stopped_keeps_nobody_waiting(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root in the guest stops the server: reading, writing and asking end with `ETIMEDOUT`, and the next call works."""
    monkeypatch.setattr(fileserver, "SILENCE_SECONDS", 3.0)
    await vm.files.write("data", bytes(MIB))
    stop = "pkill -STOP -u user"
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: vm.files.stat("data"),
        lambda: vm.files.read("data"),
        lambda: vm.files.write("data", bytes(MIB)),
    ]
    for call in calls:
        await call()
        (await vm.exec(stop, user="root")).check()
        with pytest.raises(GuestFileError, match="silent") as late:
            await call()
        assert late.value.errno == errno.ETIMEDOUT
    assert (await vm.files.stat("data")).size == MIB


async def test_leaving_a_file_in_its_middle_ends_only_its_server(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server still had to say is taken in, so that its end is told and the VM lives on."""
    monkeypatch.setattr(execution, "RETIRE_SECONDS", 3.0)
    await vm.files.write("data", bytes(4 * MIB))
    content = vm.files.stream("data")
    await anext(content)
    (server,) = vm._client.executions.all_running()
    intake = server._intake
    with anyio.fail_after(20):
        while intake._received[Kind.ANSWER] < intake._granted[Kind.ANSWER] + WINDOW_BYTES:  # noqa: ASYNC110 - as said
            await anyio.sleep(0.01)
    await content.aclose()
    result = await server.wait()
    assert (result.outcome, result.signal) == (Outcome.SIGNALED, 9)
    assert (await vm.files.stat("data")).size == 4 * MIB
