"""Changes that are watched, file servers that die, and a disk that is full."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable

import anyio
import pytest

from sandbox.errors import GuestFileError, GuestLost
from sandbox.guest.entry import Change
from sandbox.vm import VM

MIB = 1024 * 1024


async def refused(call: Awaitable[object]) -> int | None:
    """Return the number that a call is refused with."""
    with pytest.raises(GuestFileError) as refusal:
        await call
    assert refusal.value.filename
    return refusal.value.errno


async def test_a_file_server_that_is_killed_is_told_and_replaced(vm: VM) -> None:
    """The user may kill the servers that are his: the call under way raises, the next one works."""
    await vm.files.write("file", bytes(4 * MIB))
    for kill in ("pkill -9 -u user -f sandbox-agent", "pkill -INT -u user -f sandbox-agent"):
        stream = vm.files.stream("file")
        await anext(stream)
        async with vm.files.watch() as changes:
            await vm.exec(f"{kill}; true")
            assert await refused(_rest(stream)) == errno.EIO
            assert await refused(_rest(changes)) == errno.EIO
        assert len(await vm.files.read("file")) == 4 * MIB

    async def endless() -> AsyncIterator[bytes]:
        yield b"begun"
        await vm.exec("pkill -9 -u user -f sandbox-agent; true")
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
