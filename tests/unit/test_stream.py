"""The host's end of a channel: who waits for room in it is told, however many wait."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import anyio
import anyio.lowlevel
import pytest

from sandbox.hypervisor.stream import SocketStream

MUCH = 2 * 1024 * 1024
LITTLE = 1024 * 1024


@pytest.fixture
def ends() -> Iterator[tuple[SocketStream, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    stream = SocketStream(ours)
    yield stream, theirs
    stream.close()
    theirs.close()


async def _receive(sock: socket.socket, size: int) -> None:
    while size > 0:
        await anyio.wait_readable(sock)
        size -= len(sock.recv(65536))


@pytest.mark.parametrize("end", ["the peer reads", "the stream is closed"])
async def test_all_who_wait_for_room_go_on(ends: tuple[SocketStream, socket.socket], end: str) -> None:
    """Several wait at once: each returns when the peer has read enough, or the stream is closed."""
    stream, theirs = ends
    stream.write(bytes(MUCH))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(stream.wait_unsent_below, LITTLE)
                await anyio.lowlevel.checkpoint()
            if end == "the peer reads":
                await _receive(theirs, MUCH)
            else:
                stream.close()
