"""Following a program with time-outs and cancellations around each step: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from sandbox.guest import events as events_module
from sandbox.guest.events import Ended, Event, Events, Output
from sandbox.guest.execution import Execution
from sandbox.wire import GRANT_BYTES, WINDOW_BYTES, Kind, encode
from tests.fuzz.channel import Channel

LINES = 200_000
END = json.dumps({"code": 0, "signal": None, "cpu_us": 100}).encode()
Step = Callable[[Events], Awaitable[Event | None]]


async def _wait_for(events: Events) -> Event | None:
    try:
        return await asyncio.wait_for(anext(events), 1e-4)
    except TimeoutError:
        return None


async def _wait_for_with_default(events: Events) -> Event | None:
    try:
        return await asyncio.wait_for(anext(events, None), 1e-4)
    except TimeoutError:
        return None


async def _move_on(events: Events) -> Event | None:
    with anyio.move_on_after(1e-4):
        return await anext(events)
    return None


async def _cancelled_task(events: Events) -> Event | None:
    """Cancel a task that takes a step, at the very moment at which something has arrived for it."""

    async def step() -> Event:
        return await anext(events)

    task = asyncio.create_task(step())
    await asyncio.wait([task], timeout=1e-4)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


async def _until_there_is_credit(execution: Execution, size: int) -> None:
    """Wait as an honest guest does."""
    intake = execution._intake
    while intake._received[Kind.OUT] + size - intake._granted[Kind.OUT] > WINDOW_BYTES:  # noqa: ASYNC110 - no event
        await asyncio.sleep(0)


def _write_on(channel: Channel, execution: Execution, text: bytes) -> None:
    """Write what there is credit for, and more than is kept of it if nobody slows the program down."""
    intake = execution._intake
    begin = start = intake._received[Kind.OUT]
    while start < min(len(text), begin + 3 * WINDOW_BYTES):
        piece = text[start : start + 7000]
        if start + len(piece) - intake._granted[Kind.OUT] > WINDOW_BYTES:
            return
        channel.say(encode(Kind.OUT, 0, 1, piece))
        start += len(piece)
    if start == len(text) > begin:
        channel.say(encode(Kind.EXITED, 0, 1, END))


@pytest.mark.parametrize("step", [_wait_for, _wait_for_with_default, _move_on, _cancelled_task])
async def test_steps_that_time_out_lose_nothing(step: Step) -> None:
    """Numbered lines, of which little is kept: each arrives once, however often a step was given up."""
    channel = Channel()
    execution = channel.start(keep_bytes=1000)
    events = execution.events()
    text = "".join(f"{number}\n" for number in range(LINES)).encode()
    seen, given_up, is_over = b"", 0, False
    with anyio.fail_after(60):
        while not is_over:
            event = await step(events)
            if event is None:
                given_up += 1
                _write_on(channel, execution, text)
            elif isinstance(event, Output):
                assert event.offset == len(seen)
                seen += event.data
            is_over = isinstance(event, Ended)
    assert seen == text
    assert given_up > len(text) // WINDOW_BYTES
    channel.release()


async def test_a_step_that_is_cancelled_when_something_has_arrived_leaves_it() -> None:
    """Between the arrival and the moment at which the task would have taken it, the task is cancelled."""
    channel = Channel()
    events = channel.start().events()
    task = asyncio.create_task(events.__anext__())
    await anyio.lowlevel.checkpoint()
    channel.say(encode(Kind.OUT, 0, 1, b"here"))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await anext(events) == Output("stdout", 0, b"here")
    channel.release()


async def test_a_step_given_up_keeps_the_program_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps nothing changes: what was not taken gives the guest no credit, however long that takes."""
    monkeypatch.setattr(events_module, "LEAVE_SECONDS", 0.01)
    channel = Channel()
    execution = channel.start(keep_bytes=0)
    events = execution.events()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(events), 0.001)
    for _ in range(WINDOW_BYTES // GRANT_BYTES):
        channel.say(encode(Kind.OUT, 0, 1, bytes(GRANT_BYTES)))
    await anyio.sleep(0.05)
    assert Kind.WINDOW_OUT not in channel.heard
    total = 0
    while total < WINDOW_BYTES:
        event = await anext(events)
        assert isinstance(event, Output)
        assert event.offset == total
        total += len(event.data)
    assert channel.heard.count(Kind.WINDOW_OUT) == WINDOW_BYTES // GRANT_BYTES
    channel.release()


async def test_a_task_that_was_cancelled_for_good_slows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: when the task that iterates is gone and no other goes on, the guest gets its credit."""
    monkeypatch.setattr(events_module, "LEAVE_SECONDS", 0.01)
    channel = Channel()
    events = channel.start().events()

    async def follow() -> None:
        async for _ in events:
            pass

    task = asyncio.create_task(follow())
    await anyio.lowlevel.checkpoint()
    task.cancel()
    await asyncio.wait([task])
    for _ in range(WINDOW_BYTES // GRANT_BYTES):
        channel.say(encode(Kind.OUT, 0, 1, bytes(GRANT_BYTES)))
    with anyio.fail_after(5):
        while Kind.WINDOW_OUT not in channel.heard:  # noqa: ASYNC110 - a list has no events
            await anyio.sleep(0.005)
    channel.release()


async def test_a_result_that_was_waited_for_too_shortly_is_given_by_the_next_step() -> None:
    """The end is an event like others: a step that was cancelled while the result was made has not taken it."""
    channel = Channel()
    execution = channel.start(keep_bytes=4 * 1024 * 1024)
    written = bytes(GRANT_BYTES) * 40
    events = execution.events()
    total = 0
    for start in range(0, len(written), GRANT_BYTES):  # beyond what stays in memory, so that making a result waits
        await _until_there_is_credit(execution, GRANT_BYTES)
        channel.say(encode(Kind.OUT, 0, 1, written[start : start + GRANT_BYTES]))
        while total < start + GRANT_BYTES:
            event = await anext(events)
            total += len(event.data) if isinstance(event, Output) else 0
    channel.say(encode(Kind.EXITED, 0, 1, END))
    task = asyncio.create_task(events.__anext__())
    await anyio.lowlevel.checkpoint()
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    with anyio.fail_after(5):
        last = await anext(events)
    assert isinstance(last, Ended)
    assert last.result.stdout == written
    assert [event async for event in events] == []
    channel.release()


@pytest.mark.parametrize("kinds", [[Kind.OUT], [Kind.OUT, Kind.ERR]])
async def test_single_bytes_that_nobody_takes_cost_no_more_than_a_few_times_their_number(kinds: list[Kind]) -> None:
    """A follower that is never read holds a window of each stream, not an object for each byte; the order stays."""
    channel = Channel()
    execution = channel.start(keep_bytes=0)
    events = execution.events()
    # A frame by itself each time: nothing is merged before it reaches the follower.
    said = [encode(kind, 0, 1, b"x") for kind in kinds]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(WINDOW_BYTES // 8):
            for frame in said:
                channel.say(frame)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 2 * 1024 * 1024
    seen = [await anext(events) for _ in range(10 if len(kinds) > 1 else 1)]
    expected = [Output("stdout", n // 2, b"x") if n % 2 == 0 else Output("stderr", n // 2, b"x") for n in range(10)]
    assert seen == (expected if len(kinds) > 1 else [Output("stdout", 0, b"x" * (WINDOW_BYTES // 8))])
    channel.release()
