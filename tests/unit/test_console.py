"""What a guest says on its console: the end of it is kept, and saying much does not keep the host busy."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from sandbox.hypervisor.console import KEPT_BYTES, Console


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Console, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    console = Console(ours)
    console.start_receiving()
    yield console, theirs
    console.close()
    theirs.close()


async def test_byte_by_byte_wakes_the_host_a_bounded_number_of_times(ends: tuple[Console, socket.socket]) -> None:
    """After a thousand reads it is read a hundred times in a second at most; nothing that was said is lost."""
    console, theirs = ends
    reads: list[int] = []
    console.on_data = lambda data: reads.append(len(data))
    began, said = time.monotonic(), 5000
    sent = 0
    with anyio.fail_after(30):
        while sum(reads) < said:
            if sent < said:
                with suppress(BlockingIOError):
                    sent += theirs.send(b"x")
            await anyio.sleep(0.001 if sent == said else 0)
    assert len(reads) <= 1010 + 100 * (time.monotonic() - began)
    assert console.text() == "x" * said


async def test_a_flood_is_read_slowly_and_its_end_is_kept(ends: tuple[Console, socket.socket]) -> None:
    """Of many bytes at once some megabytes are read at once; the ring holds the last of them."""
    console, theirs = ends
    total = 0
    began = time.monotonic()
    while time.monotonic() < began + 1:
        try:
            total += theirs.send(b"y" * 65536)
        except BlockingIOError:
            await anyio.sleep(0.001)
    assert total < 6 * 1024 * 1024
    assert console.text() == "y" * KEPT_BYTES


async def test_the_last_words_are_found_behind_any_number_of_empty_lines(
    ends: tuple[Console, socket.socket],
) -> None:
    """The last line that says something, and a panic's line, also when all that is kept follows them."""
    console, theirs = ends
    theirs.send(b"[    1.0] Kernel panic - not syncing: sysrq\r\n  so much for that  \r\n" + b"\r\n" * 10_000)
    with anyio.fail_after(5):
        while len(console.text()) < 20_000:
            await anyio.lowlevel.checkpoint()
    assert console.last_line() == "so much for that"
    assert console.panic_line() == "Kernel panic - not syncing: sysrq"


async def test_the_last_words_are_those_before_the_power_goes(ends: tuple[Console, socket.socket]) -> None:
    """An agent that fails says why, and then has the kernel switch off, which says so; that alone is told, too."""
    console, theirs = ends
    off = b"[    5.1] reboot: Power down\r\n"
    theirs.send(off)
    with anyio.fail_after(5):
        while "Power" not in console.text():
            await anyio.lowlevel.checkpoint()
    assert console.last_line() == off.decode().strip()
    theirs.send(b"ModuleNotFoundError: No module named 'x'\r\n" + off)
    with anyio.fail_after(5):
        while "Module" not in console.text():
            await anyio.lowlevel.checkpoint()
    assert console.last_line() == "ModuleNotFoundError: No module named 'x'"
