"""Following programs: from any offset, by many, slowly, again, and without loss."""

from __future__ import annotations

import random

import anyio

from sandbox.guest.events import Ended, Events, Output, Started
from sandbox.guest.execution import Status
from sandbox.result import Result
from sandbox.vm import VM
from sandbox.wire import Kind
from tests.waiting import until_written

MIB = 1024 * 1024
NUMBERS = "i=0; while [ $i -lt {count} ]; do echo $i; echo e$i >&2; i=$((i+1)); done"


async def collect(events: Events) -> tuple[bytes, bytes, Result | None]:
    """Return both streams and the end; each piece must begin where the one before ended."""
    streams = {"stdout": bytearray(), "stderr": bytearray()}
    begins: dict[str, int] = {}
    async for event in events:
        if isinstance(event, Ended):
            return bytes(streams["stdout"]), bytes(streams["stderr"]), event.result
        if isinstance(event, Output):
            begin = begins.setdefault(event.stream, event.offset)
            assert event.offset == begin + len(streams[event.stream])
            streams[event.stream] += event.data
    return bytes(streams["stdout"]), bytes(streams["stderr"]), None


async def test_events_begin_anywhere_and_end_with_the_result(vm: VM) -> None:
    """Start, output from any offset of either stream, and the end come in order; an offset ahead is waited for."""
    execution = await vm.spawn("read x; printf 0123456789; printf abcdef >&2; read y; printf late; read z", stdin=None)
    ahead = execution.events(stdout_offset=12, stderr_offset=1 << 40)
    await execution.write(b"\n")
    await until_written(execution, 10)
    middle = execution.events(stdout_offset=7, stderr_offset=4)
    await execution.write(b"\n\n")
    events = [event async for event in middle]
    assert isinstance(events[0], Started)
    assert events[0].pid == execution.pid
    assert [event for event in events if isinstance(event, Output)][:2] == [
        Output("stdout", 7, b"789"),
        Output("stderr", 4, b"ef"),
    ]
    assert isinstance(events[-1], Ended)
    assert [event for event in [event async for event in ahead] if isinstance(event, Output)] == [
        Output("stdout", 12, b"te")
    ]
    assert (await collect(execution.events(stdout_offset=3)))[:2] == (b"3456789late", b"abcdef")


async def test_a_lost_follower_is_replaced_without_loss(vm: VM) -> None:
    """Whoever followed is cancelled time and again; the next one goes on where it stopped, to the last byte."""
    execution = await vm.spawn("seq 60000 | tee /dev/stderr", timeout=60)
    seen = {"stdout": bytearray(), "stderr": bytearray()}
    ended = False

    async def follow(most: int) -> None:
        nonlocal ended
        events = execution.events(stdout_offset=len(seen["stdout"]), stderr_offset=len(seen["stderr"]))
        async for event in events:
            if isinstance(event, Output):
                assert event.offset == len(seen[event.stream])
                seen[event.stream] += event.data
                most -= len(event.data)
            ended = isinstance(event, Ended)
            if most < 0:
                group.cancel_scope.cancel()
                await anyio.sleep_forever()

    while not ended:
        async with anyio.create_task_group() as group:
            group.start_soon(follow, 40_000)
    assert seen["stdout"] == "".join(f"{number}\n" for number in range(1, 60_001)).encode()
    assert seen["stderr"] == seen["stdout"]


async def test_many_read_at_once_and_again(vm: VM) -> None:
    """Ten who follow and ten who wait all get the same bytes and the same end, during the program and after it."""
    execution = await vm.spawn(NUMBERS.format(count=1000), timeout=60)
    followed: list[tuple[bytes, bytes, Result | None]] = []
    results: list[Result] = []

    async def follow() -> None:
        followed.append(await collect(execution.events()))

    async def wait() -> None:
        results.append(await execution.wait())

    for _ in range(2):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(follow)
                group.start_soon(wait)
    out = "".join(f"{number}\n" for number in range(1000)).encode()
    assert {(stdout, len(stderr)) for stdout, stderr, _ in followed} == {(out, len(out) + 1000)}
    assert len(results) == 20
    assert {result.stdout for result in results} == {out}


async def test_a_slow_follower_slows_the_program_and_loses_nothing(vm: VM) -> None:
    """While nobody takes what one follower waits for, the program stops writing; then every byte arrives."""
    execution = await vm.spawn("head -c 4000000 /dev/zero; echo done >&2", capture_bytes=MIB, timeout=60)
    events = execution.events()
    assert isinstance(await anext(events), Started)
    first = await anext(events)
    assert isinstance(first, Output)
    while execution.record.streams[Kind.OUT].total < 256 * 1024:  # the guest uses its whole credit
        await vm.exec(["true"])
    await vm.exec(["true"])
    assert execution.record.streams[Kind.OUT].total <= len(first.data) + 256 * 1024
    assert execution.status is Status.RUNNING
    stdout, stderr, result = await collect(events)
    assert len(first.data) + len(stdout) == 4_000_000
    assert stderr == b"done\n"
    assert result is not None
    assert result.stdout_bytes == 4_000_000


async def test_a_follower_that_was_dropped_stops_nobody(vm: VM) -> None:
    """Who leaves an iteration half-way, without closing it, does not hold the program up."""
    execution = await vm.spawn("head -c 3000000 /dev/zero", timeout=30)

    async def glance() -> None:
        async for event in execution.events():
            if isinstance(event, Output):
                while execution.record.streams[Kind.OUT].total < 256 * 1024:
                    await vm.exec(["true"])
                return

    await glance()
    assert (await execution.wait()).stdout_bytes == 3_000_000


async def test_large_output_is_read_back_at_any_offset(vm: VM) -> None:
    """40 MiB are kept in a file on the host: each piece read back, and the whole, is what was written."""
    words = 10 * MIB
    code = f"import numpy, sys\nsys.stdout.buffer.write(numpy.arange({words}, dtype='<u4').tobytes())"
    execution = await vm.spawn(["python3", "-c", code], capture_bytes=40 * MIB, timeout=60)
    result = await execution.wait()
    assert (result.stdout_bytes, len(result.stdout), result.stdout_truncated) == (40 * MIB, 40 * MIB, False)
    chance = random.Random(7)
    for offset in [0, MIB - 4, MIB, 40 * MIB - 4, *(4 * chance.randrange(words) for _ in range(20))]:
        piece = await execution.read("stdout", offset, 1000)
        assert piece.offset == offset
        assert piece.data
        assert result.stdout.startswith(piece.data, offset)
        assert int.from_bytes(piece.data[:4], "little") == offset // 4
    assert (await execution.read("stdout", 40 * MIB, 10)).data == b""
    assert int.from_bytes(result.stdout[-4:], "little") == words - 1


async def test_head_and_tail_are_true_when_little_is_kept(vm: VM) -> None:
    """With a small capture the first bytes, the last bytes and the count are right, and a gap shows in offsets."""
    execution = await vm.spawn("seq 300000", capture_bytes=100, timeout=30)
    result = await execution.wait()
    text = "".join(f"{number}\n" for number in range(1, 300_001)).encode()
    assert (result.stdout, result.stdout_bytes, result.stdout_truncated) == (text[:100], len(text), True)
    assert text.endswith(result.stdout_tail)
    assert len(result.stdout_tail) == 64 * 1024
    pieces = [event for event in [event async for event in execution.events()] if isinstance(event, Output)]
    assert pieces[0] == Output("stdout", 0, text[:100])
    assert pieces[1].offset > 100
    for piece in pieces:
        assert text[piece.offset : piece.offset + len(piece.data)] == piece.data
    assert pieces[-1].offset + len(pieces[-1].data) == len(text)
    nothing = await (await vm.spawn("echo x", capture_bytes=0)).wait()
    assert (nothing.stdout, nothing.stdout_bytes, nothing.stdout_tail) == (b"", 2, b"x\n")
