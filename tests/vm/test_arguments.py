"""What callers may pass: text and paths wherever they can be meant, bytes that are no text, and what is refused."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import PurePosixPath

import pytest

from sandbox.errors import ConfigError, GuestResources
from sandbox.vm import VM

RAW = b"\xff\x80caf\xc3\xa9"


async def test_text_paths_and_buffers_are_taken_where_they_can_be_meant(vm: VM) -> None:
    """Strings are UTF-8, `os.PathLike` is a path, buffers are bytes, whole numbers are seconds, None is nothing."""
    await vm.files.mkdir(PurePosixPath("a/b"), parents=True)
    await vm.write_file(PurePosixPath("a/b/text"), "grüße")
    await vm.files.append(b"a/b/text", bytearray(b"!"))
    assert await vm.files.read("a/b/text") == "grüße!".encode()
    assert (await vm.exec("pwd; cat", cwd=PurePosixPath("a/b"), stdin="é", timeout=60)).stdout == (
        "/workspace/a/b\né".encode()
    )
    assert (await vm.exec(["cat", PurePosixPath("a/b/text")], stdin=memoryview(b"x"), env=None)).stdout == (
        "grüße!".encode()
    )
    assert (await vm.exec("cat", stdin=None)).stdout == b""


async def test_bytes_that_are_no_text_arrive_as_they_are(vm: VM) -> None:
    """In arguments, environment, code and input they are lone surrogates, as `os.fsdecode` gives them."""
    raw = os.fsdecode(RAW)
    assert (await vm.exec(["printf", "%s", raw])).stdout == RAW
    assert (await vm.exec('printf %s "$X"', env={"X": raw})).stdout == RAW
    assert (await vm.exec("cat", stdin=raw)).stdout == RAW
    assert (await vm.run(f"printf %s '{raw}'", language="bash")).stdout == RAW
    async with vm.context("bash") as context:
        assert (await context.run(f"printf %s '{raw}'")).stdout == RAW


@pytest.mark.parametrize("broken", ["print('\ud83d')", "\udc00", "x" * 70_000 + "\ud800"])
async def test_text_that_was_cut_in_two_is_refused_before_anything_starts(vm: VM, broken: str) -> None:
    """A model's half of an emoji is told by its place, instead of a program that ends with 126 and says nothing."""
    place = next(index for index, character in enumerate(broken) if "\ud800" <= character <= "\udfff")
    with pytest.raises(ConfigError, match=rf"U\+D[8C][03]. at position {place}|U\+DC00"):
        await vm.run(broken)
    for refused in (
        vm.exec(["echo", broken]),
        vm.exec("true", env={"X": broken}),
        vm.exec("true", env={broken: "x"}),
        vm.exec("true", cwd=broken),
        vm.files.read(broken),
    ):
        with pytest.raises(ConfigError, match="lone surrogate"):
            await refused
    async with vm.context() as context:
        with pytest.raises(ConfigError, match="lone surrogate"):
            await context.run(broken)
        assert (await context.run("6 * 7")).value == {"text/plain": "42"}


async def test_a_guest_without_room_for_a_process_is_a_typed_error(vm: VM) -> None:
    """Nothing ran, so that a retry is safe; when there is room again, the same VM goes on."""
    holder = await vm.spawn("read x; echo 20000 > /proc/sys/kernel/threads-max", user="root", stdin=None)
    full = await vm.spawn("echo 20 > /proc/sys/kernel/threads-max; echo $?", user="root")
    assert (await full.wait()).stdout == b"0\n"
    with suppress(GuestResources):  # a child may have been made ahead
        await vm.run("pass")
    with pytest.raises(GuestResources, match="a retry is safe"):
        await vm.exec("true", id="refused")
    execution = vm.attach("refused")
    assert execution.account()["exit_code"] == 126
    with pytest.raises(GuestResources):
        await vm.run("pass")
    with pytest.raises(GuestResources):
        await vm.files.exists("x")
    await holder.write("go\n")
    await holder.close_stdin()
    await holder.wait()
    assert (await vm.exec("echo again")).stdout == b"again\n"
