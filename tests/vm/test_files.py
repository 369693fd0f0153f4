"""Files in a real guest: every operation, odd names, typed refusals, changes that are watched, and servers that die."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable

import anyio
import pytest

from sandbox.errors import ConfigError, GuestFileError, GuestLost
from sandbox.guest.entry import Change
from sandbox.vm import VM

MIB = 1024 * 1024
NAMES = [
    "with space",
    "new\nline",
    "tab\tand 'quotes' \"too\"",
    "üñí\U0001f600",
    "bad\udcff\udc80bytes",
    "-rf",
    "--",
    "$HOME `id`",
    "*",
    "x" * 255,
    "\\",
    "...",
]


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
            with pytest.raises(ConfigError, match="NUL"):
                await call
        with pytest.raises(ConfigError, match="NUL"):
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
        "echo x > file; mkdir dir full; touch full/x; mkfifo fifo; ln -s loop1 loop2; ln -s loop2 loop1; ln -s no dangling;"
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


async def test_a_file_server_that_is_killed_is_told_and_replaced(vm: VM) -> None:
    """The user may kill the servers that are his: the call under way raises, the next one works."""
    await vm.files.write("file", bytes(4 * MIB))
    for kill in ("pkill -9 -u user -f agent.py", "pkill -INT -u user -f agent.py"):
        stream = vm.files.stream("file")
        await anext(stream)
        async with vm.files.watch() as changes:
            await vm.exec(f"{kill}; true")
            assert await refused(_rest(stream)) == errno.EIO
            assert await refused(_rest(changes)) == errno.EIO
        assert len(await vm.files.read("file")) == 4 * MIB

    async def endless() -> AsyncIterator[bytes]:
        yield b"begun"
        await vm.exec("pkill -9 -u user -f agent.py; true")
        await anyio.sleep_forever()

    with anyio.fail_after(10):
        assert await refused(vm.files.write("other", endless())) == errno.EIO
    assert await vm.files.exists("file")


async def _rest(iterator: AsyncIterator[object]) -> None:
    async for _ in iterator:
        pass


async def until(changes: AsyncIterator[Change], kind: str, path: str) -> list[tuple[str, str]]:
    """Return all changes up to this one."""
    seen: list[tuple[str, str]] = []
    with anyio.fail_after(20):
        async for change in changes:
            seen.append((change.type, change.path))
            if seen[-1] == (kind, path):
                return seen
    raise AssertionError("the watch ended")


@pytest.mark.parametrize("user", [None, "root"])
async def test_changes_are_watched(vm: VM, user: str | None) -> None:
    """Making, writing, moving, removing and mode changes of files are told, in directories that come later too."""
    files = vm.files_of(user)
    await files.mkdir("top/old", parents=True)
    async with files.watch("top") as flat, files.watch("top", recursive=True) as deep:
        await files.write("top/file", b"x")
        seen = await until(flat, "written", "file")
        assert seen[0] == ("created", "file")
        assert ("modified", "file") in seen
        await files.chmod("top/file", 0o600)
        await until(flat, "attributes", "file")
        await files.move("top/file", "top/moved")
        assert await until(flat, "created", "moved") == [("removed", "file"), ("created", "moved")]
        await vm.exec("cd top; mkdir -p new/er/est; echo x > new/er/est/file; echo y > old/file", user=user)
        seen = await until(deep, "written", "old/file")
        assert {("created", "new"), ("created", "new/er"), ("created", "new/er/est")} <= set(seen)
        assert ("created", "new/er/est/file") in seen
        await vm.exec(
            "cd top; mv new renamed; echo z >> renamed/er/est/file; mv old ..; echo z >> ../old/file", user=user
        )
        await vm.exec("cd top; touch last", user=user)
        seen = await until(deep, "written", "last")
        assert ("modified", "renamed/er/est/file") in seen or ("created", "renamed/er/est/file") in seen
        assert not [path for _, path in seen if path.startswith(("new/", "old/"))], "what left is not told of"
        await files.remove("top", recursive=True)
        assert ("removed", "renamed/er/est") in await until(deep, "removed", "")


async def test_changes_that_were_too_many_are_told_as_overflow(vm: VM) -> None:
    """A watcher that is not listened to loses changes, and says so."""
    await vm.files_of("root").write("/proc/sys/fs/inotify/max_queued_events", b"1000")
    async with vm.files.watch() as changes:
        many = "for i in range(5000): open(f'f{i % 7}', 'w').close(); open(f'g{i % 5}', 'w').close()"
        assert (await vm.run(many, timeout=90)).ok
        with anyio.fail_after(30):
            async for change in changes:
                if change.type == "overflow":
                    break
        await vm.files.write("after", b"")
        await until(changes, "written", "after")


async def test_a_full_disk_is_an_error_and_no_end(vm: VM) -> None:
    """`ENOSPC` is told while writing and appending; what was there can be read and removed, and then it goes on."""
    await vm.files.write("kept", b"kept")
    with anyio.fail_after(60):
        assert await refused(vm.files.write("big", _zeros())) == errno.ENOSPC
    assert await refused(vm.files.append("big", bytes(4 * MIB))) == errno.ENOSPC
    assert await vm.files.read("kept") == b"kept"
    assert (await vm.exec("echo 1")).text == "1\n"
    await vm.files.remove("big")
    assert (await vm.files.write("next", bytes(MIB))).size == MIB
    assert (await vm.run("print(1)")).text == "1\n"


async def _zeros() -> AsyncIterator[bytes]:
    while True:
        yield bytes(MIB)


async def test_files_of_a_vm_that_is_gone(vm: VM) -> None:
    """When the VM dies, a call that is under way and the next one raise `GuestLost`."""
    stream = vm.files.stream("/usr/bin/python3")
    await anext(stream)
    with pytest.raises(GuestLost):
        await vm.exec("echo o > /proc/sysrq-trigger; sleep 60", user="root")
    with pytest.raises(GuestLost):
        await _rest(stream)
    with pytest.raises(GuestLost):
        await vm.files.exists("x")
