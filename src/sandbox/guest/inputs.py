"""What a program is given to read, as far as the guest has room for it."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from sandbox.wire import CHUNK_BYTES, GRANT_BYTES, INPUTS, WINDOW_BYTES, FrameError, Kind


class Inputs:
    """The streams into one program. After its end, what is sent goes nowhere and nobody waits."""

    def __init__(self, send: Callable[[Kind, bytes], object]) -> None:
        self._send = send
        self._credit = dict.fromkeys(INPUTS, WINDOW_BYTES)
        self._has_credit = anyio.Event()
        self._is_over = False

    async def send(self, kind: Kind, data: bytes) -> None:
        """Send bytes as the guest gets room for them."""
        view = memoryview(data)
        while view and not self._is_over:
            if not self._credit[kind]:
                if self._has_credit.is_set():  # else others wait for the same event
                    self._has_credit = anyio.Event()
                await self._has_credit.wait()
                continue
            size = min(CHUNK_BYTES, self._credit[kind], len(view))
            self._pass_on(kind, bytes(view[:size]))
            view = view[size:]

    def send_nowait(self, kind: Kind, data: bytes) -> bool:
        """Send a few bytes at once if the guest has room for them; return whether it had."""
        if self._is_over or self._credit[kind] < len(data):
            return False
        self._pass_on(kind, data)
        return True

    def grant(self, kind: Kind, count: int) -> None:
        """Take the guest's credit; raise `FrameError` if it is more than was ever used, or less than a portion."""
        if count < GRANT_BYTES:
            raise FrameError(f"{count} bytes of {kind.name} were granted; a portion has at least {GRANT_BYTES}")
        self._credit[kind] += count
        if self._credit[kind] > WINDOW_BYTES:
            raise FrameError(f"more {kind.name} was granted than its window")
        self._has_credit.set()

    def end(self) -> None:
        self._is_over = True
        self._has_credit.set()

    def _pass_on(self, kind: Kind, data: bytes) -> None:
        self._credit[kind] -= len(data)
        self._send(kind, data)
