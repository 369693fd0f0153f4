"""A byte stream to the guest over a connected socket, and the listening end that a machine connects to."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio

from sandbox.hypervisor.turns import Account, Line, line_of
from sandbox.inherited import keep_from_children

RECEIVE_BYTES = 256 * 1024
"""Of what has arrived so much is read at a time, and nothing more before it is handled."""
_CREDENTIALS = struct.Struct("3i")


class SocketStream:
    """The host's end of one guest's channel."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.account = Account()
        self.queued_bytes = 0
        self.sent_bytes = 0
        self._socket = sock
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._line: Line | None = None
        """Where it stands in line, while it does: nothing is read then but in its turns."""
        self._on_data: Callable[[bytes], bool] = lambda _: False
        self._go_on: Callable[[], bool] = lambda: False
        self._is_behind = False
        self._sender: asyncio.AbstractEventLoop | None = None
        self._unsent = bytearray()
        self._progress = anyio.Event()

    def start_receiving(self, on_data: Callable[[bytes], bool], go_on: Callable[[], bool] = lambda: False) -> None:
        """Call `on_data` from the event loop with all that arrives; with nothing, once, when the peer is gone.

        A callback instead of a task: there is nothing to own, to cancel or to leak, and no hop on the way. One that
        has more to do than fits into `TURN_SECONDS` returns True: then `go_on` is called, as often as it returns True
        itself, before anything else is read. `turns` says when.
        """
        self._on_data, self._go_on = on_data, go_on
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._on_readable)

    def receive_nowait(self) -> bytes:
        """Return what has arrived; nothing if that is nothing, or the peer or this end is closed."""
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except OSError:
            return b""

    def stop_receiving(self) -> None:
        """Call nobody any more. What was read and not handled is dropped by the one who has it."""
        self._is_behind = False
        if self._line is not None:
            self._line.leave(self)
            self._line = None
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop = None

    def take_turn(self) -> bool:
        """Go on with what is left, or read on; leave the line when nothing has arrived."""
        began, size = time.perf_counter(), 0
        if self._is_behind:
            self._is_behind = self._go_on()
        elif (data := self._read()) is not None:
            size = len(data)
            self._is_behind = self._on_data(data)
        elif self._loop is not None:
            self._line = None
            self._loop.add_reader(self._socket, self._on_readable)
        self.account.charge(began, size, is_behind=self._line is not None)
        return self._line is not None

    def _on_readable(self) -> None:
        began = time.perf_counter()
        if self.account.paid <= began:
            if (data := self._read()) is None:
                return
            self._is_behind = self._on_data(data)
            self.account.charge(began, len(data), is_behind=False)
            if not self._is_behind:
                return
        if self._loop is not None:  # else it was closed meanwhile
            self._loop.remove_reader(self._socket)
            self._line = line_of(self._loop)
            self._line.join(self)

    def _read(self) -> bytes | None:
        """Return what has arrived; None if that is nothing. Stop receiving when the peer is gone."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self.stop_receiving()
        return data

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
            self._on_data, self._go_on = (lambda _: False), (lambda: False)
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
