"""Programs in the background: followed, attached to, fed, signalled, and how their end is told."""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import AsyncIterator

import anyio
import pytest

from sandbox.certificate import Cause
from sandbox.errors import ConfigError, StateError
from sandbox.guest.events import Ended, Events, Output, Started
from sandbox.guest.execution import Execution, Status
from sandbox.result import Outcome, Result
from sandbox.vm import VM
from sandbox.wire import Kind

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


async def until_written(execution: Execution, size: int) -> None:
    """Return when standard output has so many bytes."""
    total = 0
    async for event in execution.events():
        total += len(event.data) if isinstance(event, Output) and event.stream == "stdout" else 0
        if total >= size:
            return
    raise AssertionError(f"it ended after {total} bytes")


async def test_a_program_outlives_its_caller_and_is_attached_to_by_id(vm: VM) -> None:
    """A task starts a program and is cancelled; another one finds it by its id, reads all of it, and ends it."""
    started = anyio.Event()

    async def caller() -> None:
        execution = await vm.spawn("echo first; read line; echo got $line", id="mine", stdin=None)
        started.set()
        await execution.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(caller)
        await started.wait()
        group.cancel_scope.cancel()
    assert vm.status("mine") is Status.RUNNING
    execution = vm.attach("mine")
    await until_written(execution, 6)
    await execution.write(b"it\n")
    await execution.close_stdin()
    stdout, stderr, result = await collect(execution.events())
    assert (stdout, stderr) == (b"first\ngot it\n", b"")
    assert result is not None
    assert result.ok
    assert vm.status("mine") is Status.FINISHED
    assert (await vm.attach("mine").wait()).stdout == stdout


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


async def test_input_has_back_pressure_and_an_end(vm: VM) -> None:
    """Writes wait for a program that does not read, arrive whole and in order, and end where they were ended."""
    execution = await vm.spawn("read -n 1 go; sha256sum | cut -c 1-64", stdin=None, timeout=60)
    with anyio.fail_after(20):
        await execution.write(b"x" + b"y" * MIB)
    stopped = await vm.spawn("kill -STOP $$; wc -c", stdin=None, timeout=60)
    written = 0
    with anyio.move_on_after(0.5) as waiting:
        for _ in range(64):
            await stopped.write(b"z" * 65536)
            written += 65536
    assert waiting.cancelled_caught, "4 MiB went to a program that does not read"
    assert written <= 512 * 1024
    stopped.send_signal(signal.SIGCONT)
    await stopped.close_stdin()
    count = int((await stopped.wait()).text)
    assert written <= count <= written + 65536
    await execution.close_stdin()
    await execution.close_stdin()
    with pytest.raises(StateError, match="closed"):
        await execution.write(b"late")
    result = await execution.wait()
    assert result.text.strip() == hashlib.sha256(b"y" * MIB).hexdigest()
    await (await vm.spawn("exit 0", stdin=None)).wait()


async def test_two_who_write_at_once_both_come_to_their_end(vm: VM) -> None:
    """Concurrent writers share the guest's credit; none of them is forgotten."""
    execution = await vm.spawn("sleep 0.3; wc -c", stdin=None, timeout=60)
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(execution.write, bytes(MIB))
    await execution.close_stdin()
    assert int((await execution.wait()).text) == 4 * MIB


async def test_signals_reach_the_group_or_the_whole_tree(vm: VM) -> None:
    """A signal goes to the program's process group, with `tree` also to what left it; `kill` spares nothing."""
    away = "setsid bash -c 'trap \"echo away; exit\" USR2; echo up; while :; do sleep 0.05; done' &"
    loop = "trap 'echo one' USR1; trap 'echo both' USR2; echo up; while :; do sleep 0.05; done"
    execution = await vm.spawn(f"{away} {loop}", timeout=60)
    await until_written(execution, 6)
    execution.send_signal(signal.SIGUSR1)
    await until_written(execution, 10)
    execution.send_signal(signal.SIGUSR2, tree=True)
    await until_written(execution, 20)
    assert sorted((await execution.read("stdout")).data.split()) == [b"away", b"both", b"one", b"up", b"up"]
    execution.kill()
    result = await execution.wait()
    assert (result.outcome, result.signal, result.exit_code) == (Outcome.SIGNALED, signal.SIGKILL, None)
    assert result.certificate is not None
    assert result.certificate.cause is Cause.KILLED_BY_CALLER
    execution.kill()
    execution.send_signal(signal.SIGTERM)
    assert (await execution.wait()).signal == signal.SIGKILL
    polite = await vm.spawn("trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done", timeout=60)
    await until_written(polite, 3)
    polite.send_signal(signal.SIGTERM)
    assert (await polite.wait()).exit_code == 3


async def test_ids_are_used_once_and_their_status_is_never_unknown(vm: VM) -> None:
    """An id is taken once; whoever asks hears never started, running or finished, for forgotten ones too."""
    assert vm.status("one") is Status.NEVER_STARTED
    with pytest.raises(StateError, match="ever started"):
        vm.attach("one")
    running = await vm.spawn("read x", id="one", stdin=None)
    assert (vm.status("one"), running.status) == (Status.RUNNING, Status.RUNNING)
    with pytest.raises(StateError, match="started before"):
        await vm.spawn("true", id="one")
    with pytest.raises(ConfigError):
        await vm.spawn([], id="two")
    assert vm.status("two") is Status.NEVER_STARTED
    await running.close_stdin()
    await running.wait()
    assert vm.status("one") is Status.FINISHED
    for _ in range(4):
        await vm.exec("head -c 1000000 /dev/zero")
    assert vm.status("one") is Status.FINISHED
    with pytest.raises(StateError, match="not kept"):
        vm.attach("one")
    with pytest.raises(StateError, match="started before"):
        await vm.exec("true", id="one")
    assert (await running.wait()).exit_code == 1, "who holds the execution still has its result"


async def _lines() -> AsyncIterator[bytes]:
    for number in range(50):
        yield f"{number}\n".encode()


async def test_everything_runs_side_by_side(vm: VM) -> None:
    """20 programs, 5 contexts and 20 files in one VM at once: each gets its own bytes and nobody else's."""
    done: list[str] = []

    async def program(number: int) -> None:
        result = await vm.exec(f"cat; echo {number}", stdin=_lines(), timeout=90)
        assert result.text == "".join(f"{line}\n" for line in range(50)) + f"{number}\n"
        done.append("program")

    async def context(number: int) -> None:
        async with vm.context() as context:
            for turn in range(4):
                result = await context.run(f"x = {number} if {turn} == 0 else x + 1\nprint(x)\nx", timeout=60)
                assert (result.text, result.value) == (f"{number + turn}\n", {"text/plain": str(number + turn)})
        done.append("context")

    async def file(number: int) -> None:
        content = bytes([number]) * 50_000
        await vm.files.write(f"file {number}", content)
        assert await vm.files.read(f"file {number}") == content
        done.append("file")

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(program, number)
            group.start_soon(file, number)
        for number in range(5):
            group.start_soon(context, number * 100)
    assert sorted(done) == ["context"] * 5 + ["file"] * 20 + ["program"] * 20
