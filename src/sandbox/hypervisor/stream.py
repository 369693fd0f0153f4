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

from sandbox.inherited import keep_from_children

_RECEIVE_BYTES = 256 * 1024
_CREDENTIALS = struct.Struct("3i")


class SocketStream:
    """The host's end of one guest's channel."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sender: asyncio.AbstractEventLoop | None = None
        self._unsent = bytearray()
        self._progress = anyio.Event()
        self.queued_bytes = 0
        self.sent_bytes = 0

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

    def receive_nowait(self) -> bytes:
        """Return what has arrived; nothing if that is nothing, or the peer or this end is closed."""
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except OSError:
            return b""

    def stop_receiving(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None

    def write(self, data: bytes) -> None:
        """Take bytes to be sent in this order, at once if the peer has room. Never waits.

        If the peer is gone they are dropped: the receiving side hears of it.
        """
        self.queued_bytes += len(data)
        if self._is_closed:
            return
        if self._unsent:
            self._unsent += data
            return
        sent = self._send(data)
        if sent < len(data):
            self._unsent += data[sent:]
            self._sender = asyncio.get_running_loop()
            self._sender.add_writer(self._socket, self._send_on)

    async def wait_unsent_below(self, size: int) -> None:
        """Return when fewer bytes than `size` wait to be sent, or the stream is closed."""
        while len(self._unsent) >= size and not self._is_closed:
            if self._progress.is_set():  # else others wait for the same event
                self._progress = anyio.Event()
            await self._progress.wait()

    def _send_on(self) -> None:
        del self._unsent[: self._send(self._unsent)]
        if not self._unsent:
            self._stop_sending()
        self._progress.set()

    def _send(self, data: bytes | bytearray) -> int:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)
        self.sent_bytes += sent
        return sent

    def _stop_sending(self) -> None:
        if self._sender is not None:
            self._sender.remove_writer(self._socket)
            self._sender = None

    def close(self) -> None:
        """Close at once. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self.stop_receiving()
            self._stop_sending()
            self._unsent.clear()
            self._progress.set()
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
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
        return keep_from_children(self._socket.accept()[0])

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
