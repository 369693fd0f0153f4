"""A byte stream to the guest over a connected socket, and the listening end that a machine connects to."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio

_RECEIVE_BYTES = 256 * 1024
_CREDENTIALS = struct.Struct("3i")


class SocketStream:
    """The host's end of one guest's channel."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def start_receiving(self, on_data: Callable[[bytes], None]) -> None:
        """Call `on_data` from the event loop with all that arrives; with nothing, once, when the peer is gone.

        A callback instead of a task: there is nothing to own, to cancel or to leak, and no hop on the way.
        """
        loop = self._loop = asyncio.get_running_loop()

        def on_readable() -> None:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.stop_receiving()
            on_data(data)

        loop.add_reader(self._socket, on_readable)

    def stop_receiving(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None

    async def send(self, data: bytes) -> None:
        """Send everything; raise `OSError` when the peer is gone.

        Cancelled half-way, a frame is torn: the caller must then give the stream up.
        """
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)

    def close(self) -> None:
        """Close at once; a sender that waits is woken with an error. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self.stop_receiving()
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            anyio.notify_closing(self._socket)
            self._socket.close()


class Listener:
    """A Unix socket that is bound before the machine starts, so that nobody has to poll for it."""

    def __init__(self, path: Path, owner: tuple[int, int] | None) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(str(path))
            path.chmod(0o600)
            if owner is not None:
                os.chown(path, *owner)
            self._socket.listen(1)
        except BaseException:
            self.close()
            raise

    def accept(self, seconds: float) -> socket.socket:
        """Return the first connection; raise `TimeoutError` if none comes in time. Blocks."""
        self._socket.settimeout(seconds)
        return self._socket.accept()[0]

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def peer_pid(sock: socket.socket) -> int:
    """Return the process at the other end of a connected Unix socket, as the kernel tells."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(credentials)[0]
    return pid
