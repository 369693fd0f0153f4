"""What a guest's kernel and init print: the last of it is kept, because it tells how a guest died."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from sandbox.hypervisor.stream import SocketStream

KEPT_BYTES = 64 * 1024
_BURST_BYTES = 64 * 1024
_PAUSE_SECONDS = 0.1
_PANIC = b"Kernel panic - not syncing"


class Console:
    """Receives a guest's serial console into a ring. A guest that floods it is read slowly, and only slows itself."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = SocketStream(sock)
        self._kept = bytearray()
        self._pause: asyncio.TimerHandle | None = None
        self.on_data: Callable[[bytes], None] = lambda _: None
        """Called with all that arrives, when it does."""

    def start_receiving(self) -> None:
        self._pause = None
        self._stream.start_receiving(self._receive)

    def text(self) -> str:
        """Return what is kept."""
        return bytes(self._kept).decode("utf-8", "replace")

    def last_line(self) -> str:
        """Return the last line that says something, or an empty string."""
        return next((line.strip() for line in reversed(self.text().splitlines()) if line.strip()), "")[-300:]

    def has_panicked(self) -> bool:
        return bool(self.panic_line())

    def panic_line(self) -> str:
        """Return the kernel's own words on its end, or an empty string."""
        start = self._kept.rfind(_PANIC)
        if start < 0:
            return ""
        return bytes(self._kept[start:]).partition(b"\n")[0].decode("utf-8", "replace").strip()[:300]

    def drain(self) -> None:
        """Take what has arrived and was not read yet: the machine has ended."""
        while data := self._stream.receive_nowait():
            self._keep(data)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._stream.close()

    def _receive(self, data: bytes) -> None:
        self._keep(data)
        if len(data) >= _BURST_BYTES:
            self._stream.stop_receiving()
            self._pause = asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self.start_receiving)

    def _keep(self, data: bytes) -> None:
        self.on_data(data)
        self._kept += data
        del self._kept[:-KEPT_BYTES]
