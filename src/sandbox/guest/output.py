"""What a program has written, by byte offset: the head within a cap, the tail always, every byte counted."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from sandbox.guest.spill import Spill
from sandbox.wire import Kind

MEMORY_BYTES = 1024 * 1024
"""So much of a stream's head stays in memory; beyond, up to the cap, it goes to a file."""
TAIL_BYTES = 384 * 1024
"""More than a window and a pipe can hold, so that whoever follows a stream never meets a gap."""
MOST_RUNS = 1_000_000


class StreamRecord:
    """One stream. Offsets count from the program's first byte."""

    def __init__(self, keep: int, memory: int, on_progress: Callable[[], None]) -> None:
        self.total = 0
        self._keep = keep
        self._memory_bytes = min(memory, keep)
        self._on_progress = on_progress
        self._head = bytearray()
        self._spill: Spill | None = None
        self._tail = bytearray()

    @property
    def kept(self) -> int:
        """Length of the head: every byte below this offset is there."""
        return len(self._head) + (self._spill.size if self._spill else 0)

    @property
    def is_behind(self) -> bool:
        """Whether the host's disk cannot keep up."""
        return self._spill is not None and self._spill.is_behind

    @property
    def memory(self) -> int:
        return len(self._head) + len(self._tail)

    def add(self, data: bytes) -> None:
        room = self._memory_bytes - self.total
        if room >= len(data):
            self._head += data
        elif self.total >= self._keep or (self._spill is not None and self._spill.failure):
            self._add_tail(data)
        else:
            in_memory, in_file = max(0, room), max(0, self._keep - self.total)
            self._head += data[:in_memory]
            if in_file > in_memory:
                if self._spill is None:
                    self._spill = Spill(self._on_progress)
                self._spill.append(data[in_memory:in_file])
            self._add_tail(data[in_file:])
        self.total += len(data)

    def _add_tail(self, data: bytes) -> None:
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]

    async def read(self, offset: int, size: int) -> tuple[int, bytes]:
        """Return up to `size` bytes and where they begin: later than `offset` if those before were not kept."""
        offset = max(0, offset)
        if offset < len(self._head):
            return offset, bytes(self._head[offset : offset + size])
        if self._spill is not None and offset < self.kept:
            data = await self._spill.read(offset - len(self._head), min(size, self.kept - offset))
            if data:
                return offset, data
        start = max(offset, self.total - len(self._tail))
        begin = start - (self.total - len(self._tail))
        return start, bytes(self._tail[begin : begin + size])

    async def head(self) -> bytes:
        """Return all that was kept of the stream's beginning."""
        if self._spill is None:
            return bytes(self._head)
        return bytes(self._head) + await self._spill.read(0, self._spill.size)

    def head_in_memory(self) -> bytes:
        """Return the head of a stream that has no file."""
        return bytes(self._head)

    def tail(self, size: int) -> bytes:
        """Return the last bytes of a stream that was cut; nothing if it was kept whole."""
        return bytes(self._tail[-size:])

    def close(self) -> None:
        if self._spill is not None:
            self._spill.close()


class Record:
    """Both streams of one program and the order in which they arrived."""

    def __init__(
        self, keep: int, *, memory: int = MEMORY_BYTES, on_progress: Callable[[], None] = lambda: None
    ) -> None:
        self.streams = {
            Kind.OUT: StreamRecord(keep, memory, on_progress),
            Kind.ERR: StreamRecord(keep, memory, on_progress),
        }
        self.runs = array("I")  # lengths, in turn of standard output and standard error, beginning with the former
        self.combined_is_whole = True

    def add(self, kind: Kind, data: bytes) -> None:
        self.streams[kind].add(data)
        runs = self.runs
        if not self.combined_is_whole:
            return
        if not runs and kind is Kind.ERR:
            runs.append(0)
        if runs and (kind is Kind.OUT) == (len(runs) % 2 == 1):
            if runs[-1] + len(data) < 2**32:
                runs[-1] += len(data)
                return
        elif len(runs) < MOST_RUNS:
            runs.append(len(data))
            return
        self.combined_is_whole = False

    @property
    def memory(self) -> int:
        return sum(stream.memory for stream in self.streams.values()) + len(self.runs) * self.runs.itemsize

    def close(self) -> None:
        for stream in self.streams.values():
            stream.close()
