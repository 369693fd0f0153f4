"""What a machine says on its console while it boots, and when the host has heard it."""

from __future__ import annotations

from bisect import bisect_left

KEPT_BYTES = 64 * 1024
"""A boot says much less. What a guest says beyond is not recorded."""


class Heard:
    """The beginning of it, byte by byte with its time."""

    def __init__(self) -> None:
        self._said = bytearray()
        self._ends: list[int] = []
        self._times: list[float] = []

    @property
    def size(self) -> int:
        """How many bytes are kept."""
        return len(self._said)

    @property
    def latest(self) -> float:
        """When something was heard last."""
        return self._times[-1] if self._times else 0.0

    def take(self, data: bytes, at: float) -> None:
        """Take what has arrived at this time of the monotonic clock, after all that was taken before."""
        data = data[: KEPT_BYTES - len(self._said)]
        if data:
            self._said += data
            self._ends.append(len(self._said))
            self._times.append(at)

    def when(self, words: bytes) -> float | None:
        """Return when these words had arrived for the first time, by the monotonic clock; None if they have not."""
        found = self._said.find(words)
        return None if found < 0 else self._times[bisect_left(self._ends, found + len(words))]
