"""What a guest's kernel and init print: the last of it is kept, because it tells how a guest died."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from sandbox.hypervisor.stream import SocketStream

KEPT_BYTES = 64 * 1024
_READS_PER_SECOND = 100
_SAVED_READS = 1000
"""So many at once are a boot that is traced, where almost every byte is heard by itself."""
_BYTES_PER_READ = 4096
"""As many bytes as this count as one read more."""
_PAUSE_SECONDS = 0.1
_LINE_BYTES = 1200
_PANIC = b"Kernel panic - not syncing"
_SWITCHED_OFF = "reboot: Power down"


class Console:
    """Receives a guest's serial console into a ring. A guest that floods it is read slowly, and only slows itself.

    It does not matter how it floods: by many bytes, or byte by byte, each of which would wake the host.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._stream = SocketStream(sock)
        self._kept = bytearray()
        self._pause: asyncio.TimerHandle | None = None
        self._paid = 0.0
        """Up to when the reads that the guest may cause are used up: a time as `time.monotonic` counts."""
        self.on_data: Callable[[bytes], None] = lambda _: None
        """Called with all that arrives, when it does."""

    def start_receiving(self) -> None:
        self._pause = None
        self._stream.start_receiving(self._receive)

    def text(self) -> str:
        """Return what is kept."""
        return bytes(self._kept).decode("utf-8", "replace")

    def last_line(self) -> str:
        """Return the last line that is not empty, or an empty string.

        The kernel's line about switching off is skipped if there is an earlier one, which may give the reason.
        """
        end = bytes(self._kept).rstrip()[-_LINE_BYTES:].decode("utf-8", "replace")
        lines = [line.strip() for line in end.splitlines() if line.strip()]
        return next((line for line in reversed(lines) if _SWITCHED_OFF not in line), lines[-1] if lines else "")[-300:]

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

    def _receive(self, data: bytes) -> bool:
        self._keep(data)
        if data:
            now = time.monotonic()
            cost = (1 + len(data) / _BYTES_PER_READ) / _READS_PER_SECOND
            self._paid = max(self._paid, now - _SAVED_READS / _READS_PER_SECOND) + cost
            if self._paid > now:
                self._stream.stop_receiving()
                pause = max(_PAUSE_SECONDS, self._paid - now)
                self._pause = asyncio.get_running_loop().call_later(pause, self.start_receiving)
        return False

    def _keep(self, data: bytes) -> None:
        self.on_data(data)
        self._kept += data
        del self._kept[:-KEPT_BYTES]
