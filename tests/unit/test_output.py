"""What is kept of a program's output: the truth about every byte, in bounded memory, whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.guest.output import MEMORY_BYTES, MOST_RUNS, TAIL_BYTES, Record, StreamRecord
from sandbox.guest.spill import BEHIND_BYTES
from sandbox.wire import Kind
from tests.untraced import UNTRACED

MIB = 1024 * 1024


def _content(size: int, seed: int = 0) -> bytes:
    """Bytes that tell their own offset."""
    return b"".join((seed + number).to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


def _descriptors() -> set[str]:
    return {entry.name for entry in os.scandir("/proc/self/fd")}


async def _check(record: StreamRecord, written: bytes) -> None:
    """Every piece that can be read is what was written there, and begins no later than it has to."""
    kept, tail = record.kept, record.tail(10 * TAIL_BYTES)
    assert record.total == len(written)
    assert await record.head() == written[:kept]
    assert tail == (written[-len(tail) :] if tail else b"")
    offset = 0
    while True:
        begin, data = await record.read(offset, 70_000)
        assert begin >= offset
        assert data == written[begin : begin + len(data)]
        assert begin == offset or offset >= kept, "a kept byte was passed over"
        if not data:
            break
        offset = begin + len(data)
    assert offset == len(written), "the end was not reached"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 3000), max_size=40),
    st.integers(0, 20_000),
    st.integers(0, 6000),
)
def test_any_split_is_kept_truthfully(pieces: list[int], keep: int, memory: int) -> None:
    """However the data comes and whatever the caps are, head, tail and offsets tell the truth."""

    async def main() -> None:
        written = _content(sum(pieces))
        record, at = StreamRecord(keep, memory, lambda: None), 0
        for size in pieces:
            record.add(written[at : at + size])
            at += size
        assert record.kept == min(keep, len(written))
        await _check(record, written)
        assert record.tail(1 << 30) == written[record.kept :][-2 * TAIL_BYTES :]
        record.close()

    anyio.run(main)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([Kind.OUT, Kind.ERR]), st.integers(1, 50)), max_size=60))
def test_order_of_arrival_is_kept(pieces: list[tuple[Kind, int]]) -> None:
    """The runs add up to both streams, and putting them together gives the order in which all came."""
    record, written = Record(1 << 20), b""
    for number, (kind, size) in enumerate(pieces):
        data = bytes([number]) * size
        record.add(kind, data)
        written += data
    streams = [record.streams[Kind.OUT].head_in_memory(), record.streams[Kind.ERR].head_in_memory()]
    combined, at = b"", [0, 0]
    for index, length in enumerate(record.runs):
        combined += streams[index % 2][at[index % 2] : at[index % 2] + length]
        at[index % 2] += length
    assert combined == written
    assert record.combined_is_whole


async def test_large_output_is_bounded_in_memory() -> None:
    """Of a stream of 24 MiB the first 8 are kept, most of them in a file, and memory holds its share only."""
    written = _content(24 * MIB)
    record = StreamRecord(8 * MIB, MEMORY_BYTES, lambda: None)
    for at in range(0, len(written), 65536):
        while record.is_behind:
            await record.read(0, 0)
            await anyio.lowlevel.checkpoint()
        record.add(written[at : at + 65536])
        assert record.memory <= MEMORY_BYTES + 2 * TAIL_BYTES + 65536
    assert record.kept == 8 * MIB
    await _check(record, written)
    begin, data = await record.read(9 * MIB, 100)
    assert begin == 24 * MIB - len(record.tail(1 << 30)), "the gap is told by a later offset"
    assert data == written[begin : begin + 100]
    record.close()


@pytest.mark.timeout(60)
def test_a_million_alternating_bytes_stay_bounded() -> None:
    """The order of one-byte writes costs a few bytes each, and no more after a million changes."""
    tracemalloc.start()
    record = Record(8 * MIB)
    for _ in range(MOST_RUNS // 2 + 50_000):
        record.add(Kind.OUT, b"o")
        record.add(Kind.ERR, b"e")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(record.runs) == MOST_RUNS
    assert not record.combined_is_whole
    assert sum(record.runs) == MOST_RUNS
    assert record.streams[Kind.ERR].total == MOST_RUNS // 2 + 50_000
    assert peak < 16 * MIB
    record.add(Kind.ERR, b"e")
    assert sum(record.runs) == MOST_RUNS, "after a gap nothing is added: the order would be wrong"


async def test_reader_does_not_wait_for_what_it_does_not_want() -> None:
    """While a program writes without a pause, what was written to the file before can be read."""
    written = _content(MIB)
    stopped = False

    def add_more() -> None:
        if not stopped:
            record.add(bytes(8192))

    record = StreamRecord(1 << 40, 0, add_more)  # as soon as one write is done, there is more to be written
    record.add(written)
    with anyio.fail_after(20):
        for at in range(0, MIB, 65536):
            assert await record.read(at, 65536) == (at, written[at : at + 65536])
    stopped = True
    assert record.total > MIB
    await record.head()
    record.close()


async def test_file_has_no_name_and_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into memory leaves nothing behind: no name in the directory, no descriptor."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = _descriptors()
    record = StreamRecord(MIB, 0, lambda: None)
    record.add(bytes(MIB))
    assert await record.head() == bytes(MIB)
    assert [*os.scandir(tmp_path)] == []
    record.close()
    with anyio.fail_after(5):
        while len(_descriptors() - before):  # it is closed in a thread
            await anyio.lowlevel.checkpoint()


_FULL = """
import asyncio, json, resource, sys, warnings
from sandbox.guest.output import StreamRecord
async def main():
    behind, begun = False, 0
    record = StreamRecord(8 << 20, 4096, lambda: None)
    for number in range(400):
        record.add(bytes([number % 251]) * 10_000)
        behind = behind or record.is_behind
        begin, data = await record.read(begun, 1 << 20)
        assert begin >= begun and all(data[i] == (begin + i) // 10_000 % 251 for i in (0, len(data) - 1)[: len(data)])
        begun = begin + len(data)
    head, tail = await record.head(), record.tail(50_000)
    whole = b"".join(bytes([number % 251]) * 10_000 for number in range(400))
    print(json.dumps([record.total, record.kept, begun, head == whole[:record.kept], tail == whole[-len(tail):],
        len(tail), str(record._spill.failure)]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
asyncio.run(main())
"""


@pytest.mark.parametrize("most", [0, 1, 100_000, 1_000_001])
def test_full_disk_is_survived(most: int) -> None:
    """When the file can grow no further, the head ends there, the tail goes on, and the log says it once."""
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FULL, str(most)],
        env=UNTRACED,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    total, kept, reached, head_is_true, tail_is_true, tail, failure = json.loads(said.stdout)
    assert (total, reached, head_is_true, tail_is_true, tail) == (4_000_000, 4_000_000, True, True, 50_000)
    assert kept <= 4096 + most
    assert f"[Errno {errno.EFBIG if most else errno.ENOENT}]" in failure, "without any room there is no directory"
    assert said.stderr.count("\n") <= 1


def test_full_disk_does_not_happen_without_the_limit() -> None:
    """The check above is one that can fail: with room all is kept."""
    unlimited = str(resource.RLIM_INFINITY)
    said = subprocess.run(
        [sys.executable, "-c", _FULL, unlimited], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(said.stdout)[1] == 4_000_000


async def test_host_without_a_thread_for_the_file_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full disk is: what is in memory is kept, the end is kept, and the reason is told."""

    class Full:
        def submit(self, *_: object) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr("sandbox.guest.spill._writers", Full())
    record = StreamRecord(10_000, 1000, lambda: None)
    for _ in range(3):
        record.add(b"0123456789" * 100)
    assert (record.total, record.kept, await record.head()) == (3000, 1000, b"0123456789" * 100)
    assert not record.is_behind


async def test_slow_disk_is_told_to_the_sender() -> None:
    """With much waiting to be written the stream is behind: the guest gets no credit until the disk has it."""
    progress = anyio.Event()
    record = StreamRecord(1 << 30, 0, progress.set)
    for _ in range(3 + BEHIND_BYTES // 65536):
        record.add(bytes(65536))
    assert record.is_behind
    with anyio.fail_after(10):
        await progress.wait()
        await record.head()
    assert not record.is_behind
    record.close()


async def test_offset_before_the_beginning_is_the_beginning() -> None:
    """An offset that cannot be gives the first byte, not the last ones."""
    record = StreamRecord(100, 100, lambda: None)
    record.add(b"abcdef")
    assert await record.read(-2, 3) == (0, b"abc")
