"""The way out of a shell that does not answer: Enter, tilde, dot, as in ssh."""

from __future__ import annotations

from collections.abc import AsyncIterator


class Left(Exception):
    """The person at the terminal has left."""


class Escape:
    """Reads what is typed and finds `~.` at the beginning of a line. `~~` there stands for one tilde."""

    def __init__(self) -> None:
        self._is_at_start = True
        self._has_tilde = False

    def pass_through(self, data: bytes) -> bytes:
        """Return what is for the guest; raise `Left` when the way out was typed."""
        passed = bytearray()
        for byte in data:
            if self._has_tilde:
                self._has_tilde = False
                if byte == ord("."):
                    raise Left
                if byte != ord("~"):
                    passed += b"~"
            elif self._is_at_start and byte == ord("~"):
                self._has_tilde, self._is_at_start = True, False
                continue
            passed.append(byte)
            self._is_at_start = byte in b"\r\n"
        return bytes(passed)


async def with_escape(typed: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield what is for the guest; raise `Left` when the way out was typed."""
    escape = Escape()
    async for data in typed:
        yield escape.pass_through(data)
