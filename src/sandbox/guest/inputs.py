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
        self._fed: tuple[Kind, memoryview, Kind | None] | None = None

    async def send(self, kind: Kind, data: bytes) -> None:
        """Send bytes as the guest gets room for them, behind what it is fed."""
        view = memoryview(data)
        while view and not self._is_over:
            if self._is_fed(kind) or not self._credit[kind]:
                await self._change()
                continue
            view = self._pass_some(kind, view)

    def send_nowait(self, kind: Kind, data: bytes) -> bool:
        """Send a few bytes at once if the guest has room for them; return whether it had."""
        if self._is_over or self._is_fed(kind) or self._credit[kind] < len(data):
            return False
        self._pass_on(kind, data)
        return True

    def feed(self, kind: Kind, data: bytes, then: Kind | None) -> None:
        """Send what there is room for now and the rest as there is, and `then`. Once, before anything else is sent."""
        self._fed = kind, memoryview(data), then
        self._feed_on()

    async def fed(self) -> None:
        """Return when all that was to be fed has been sent, or the program has ended."""
        while self._fed is not None and not self._is_over:
            await self._change()

    def grant(self, kind: Kind, count: int) -> None:
        """Take the guest's credit; raise `FrameError` if it is more than was ever used, or less than a portion."""
        if count < GRANT_BYTES:
            raise FrameError(f"{count} bytes of {kind.name} were granted; a portion has at least {GRANT_BYTES}")
        self._credit[kind] += count
        if self._credit[kind] > WINDOW_BYTES:
            raise FrameError(f"more {kind.name} was granted than its window")
        if self._is_fed(kind):
            self._feed_on()
        self._has_credit.set()

    def end(self) -> None:
        self._is_over = True
        self._fed = None
        self._has_credit.set()

    def _is_fed(self, kind: Kind) -> bool:
        return self._fed is not None and self._fed[0] is kind

    def _feed_on(self) -> None:
        assert self._fed is not None
        kind, view, then = self._fed
        while view and self._credit[kind]:
            view = self._pass_some(kind, view)
        self._fed = (kind, view, then) if view else None
        if not view and then is not None:
            self._send(then, b"")

    async def _change(self) -> None:
        if self._has_credit.is_set():  # else others wait for the same event
            self._has_credit = anyio.Event()
        await self._has_credit.wait()

    def _pass_some(self, kind: Kind, view: memoryview) -> memoryview:
        """Send as much as goes into one frame; return the rest."""
        size = min(CHUNK_BYTES, self._credit[kind], len(view))
        self._pass_on(kind, bytes(view[:size]))
        return view[size:]

    def _pass_on(self, kind: Kind, data: bytes) -> None:
        self._credit[kind] -= len(data)
        self._send(kind, data)
