"""A guest that stops, or answers at the worst instant: everything ends when it has to, and ends once."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

from sandbox.certificate import Cause
from sandbox.errors import GuestLost
from sandbox.guest.context import INTERRUPT_SECONDS
from sandbox.guest.execution import KILL_SECONDS, Execution
from sandbox.guest.identity import Identity
from sandbox.guest.sandbox import Sandbox
from sandbox.guest.watchdog import SILENCE_SECONDS
from sandbox.message import encode_json
from sandbox.result import Outcome
from sandbox.wire import (
    READY,
    Kind,
    encode,
    pid,
)
from tests.fakes.virtual_time import VirtualTimeLoop
from tests.fuzz.channel import Channel

T = TypeVar("T")
END: dict[str, Any] = {"code": 0, "signal": None, "cpu_us": 100}


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def _half_frames() -> list[bytes]:
    honest = [
        encode(Kind.STARTED, 0, 1, pid(7)),
        encode(Kind.OUT, 0, 1, b"some output"),
        encode(Kind.EXITED, 0, 1, json.dumps(END).encode()),
    ]
    return [frame[:cut] for frame in honest for cut in range(len(frame))]


def test_half_a_frame_and_then_silence_ends_by_the_deadline() -> None:
    """At every byte offset, and byte by byte as well: the call ends as timed out, when it has to and not before."""

    async def main() -> None:
        for number, half in enumerate(_half_frames()):
            channel, loop = Channel(), asyncio.get_running_loop()
            begun = loop.time()
            execution = channel.start(timeout=1.0)
            step = 1 if number % 2 else len(half) or 1
            for at in range(0, len(half), step):
                loop.call_later(0.5 * at / len(half), channel.say, half[at : at + step])
            result = await execution.wait()
            assert result.outcome is Outcome.TIMED_OUT
            assert loop.time() - begun == pytest.approx(1.0 + KILL_SECONDS)
            assert isinstance(channel.client.lost, GuestLost)

    in_virtual_time(main())


def test_half_an_identity_ends_by_the_deadline() -> None:
    """A handshake that stops at any byte is over when its time is."""

    async def main() -> None:
        for cut in range(len(encode(Kind.READY, 0, 0, bytes(READY.size)))):
            channel, loop = Channel(), asyncio.get_running_loop()
            identity, begun = Identity("test"), loop.time()
            loop.call_soon(channel.say, encode(Kind.READY, identity.epoch, 0, bytes(READY.size))[:cut] or b"\0")
            with pytest.raises(GuestLost):
                await channel.client.handshake(identity, 5.0)
            assert loop.time() - begun == pytest.approx(5.0)

    in_virtual_time(main())


def test_half_an_answer_ends_by_the_deadline() -> None:
    """An interpreter that stops in the middle of its answer is interrupted, then killed, then its VM is."""
    answer = encode_json({"number": 1, "value": None, "displayed": []})

    async def main() -> None:
        for cut in range(len(answer)):
            channel, loop = Channel(), asyncio.get_running_loop()
            context, begun = Sandbox(channel.client).open_context(), loop.time()
            if cut:
                loop.call_soon(channel.say, encode(Kind.ANSWER, 0, 1, answer[:cut]))
            result = await context.run("1", timeout=1.0)
            assert result.outcome is Outcome.TIMED_OUT
            assert not result.context_alive
            assert loop.time() - begun == pytest.approx(1.0 + INTERRUPT_SECONDS + KILL_SECONDS)

    in_virtual_time(main())


@pytest.mark.parametrize("end", ["timeout", "cancel"])
def test_code_that_the_guest_does_not_take_ends_for_the_reason_it_ends_for(end: str) -> None:
    """Whose code is still being sent when the time is up has timed out; whose call is cancelled was cancelled."""
    code = "x = 1\n" * 70_000

    async def main() -> None:
        channel, loop = Channel(), asyncio.get_running_loop()
        context, begun = Sandbox(channel.client).open_context(), loop.time()
        if end == "timeout":
            result = await context.run(code, timeout=1.0)
            assert (result.outcome, result.context_alive) == (Outcome.TIMED_OUT, False)
            assert loop.time() - begun == pytest.approx(1.0 + KILL_SECONDS)
        else:
            with anyio.move_on_after(1.0):
                await context.run(code)
            await context.execution.wait_over()
        expected = Cause.DEADLINE if end == "timeout" else Cause.CANCELLED
        assert context.execution.account()["cause"] == expected.value
        assert channel.heard.count(Kind.KILL) == 1

    in_virtual_time(main())


def test_silent_guest_is_noticed_without_any_deadline() -> None:
    """A program without time-out in a guest that says nothing more: the VM is given up."""

    async def main() -> float:
        channel = Channel()
        with pytest.raises(GuestLost, match="sign of life"):
            await channel.start().wait()
        assert channel.heard.count(Kind.PING) == 1
        return asyncio.get_running_loop().time()

    assert in_virtual_time(main()) <= 3 * SILENCE_SECONDS


@pytest.mark.parametrize("before", [True, False], ids=["the frame before the timer", "the timer before the frame"])
@pytest.mark.parametrize("offset", [-0.001, 0.0, 0.001, KILL_SECONDS - 0.001, KILL_SECONDS, KILL_SECONDS + 0.001])
@pytest.mark.parametrize("code", [0, None])
@pytest.mark.parametrize("stop", ["deadline", "cancel", "kill", "nothing"])
def test_reply_at_any_instant_gives_one_outcome(before: bool, offset: float, code: int | None, stop: str) -> None:
    """An end that comes just before, at, or after a deadline, a cancellation or a kill: one outcome, for everybody."""
    end = encode(Kind.EXITED, 0, 1, json.dumps({**END, "code": code, "signal": 9 if code is None else None}).encode())

    async def main() -> None:
        channel, loop = Channel(), asyncio.get_running_loop()
        begun, ends = loop.time(), list[Execution]()
        remember = channel.client.on_ended

        def on_ended(execution: Execution) -> None:
            ends.append(execution)
            remember(execution)

        channel.client.on_ended = on_ended  # type: ignore[method-assign]

        def say() -> None:
            if channel.client.lost is None:
                channel.say(end)

        def order_end() -> None:
            if stop == "kill":
                channel.client.executions.all_running()[0].kill() if channel.client.executions.any_running else None
            elif stop == "cancel":
                task.cancel()

        task = asyncio.ensure_future(
            Sandbox(channel.client).exec(["x"], id="it", timeout=1.0 if stop == "deadline" else None)
        )
        await asyncio.sleep(0)  # the program is started, its timer set
        loop.call_at(begun + 1.0, order_end)
        loop.call_at(math.nextafter(begun + 1.0 + offset, 0 if before else 9), say)
        await asyncio.wait([task])
        execution = Sandbox(channel.client).attach("it")
        with anyio.move_on_after(60):
            await execution.wait_over()
        assert ends == [execution]
        assert channel.heard.count(Kind.KILL) <= 1
        results = list[Outcome | None]()
        for _ in range(2):
            try:
                results.append((await execution.wait()).outcome)
            except GuestLost as error:
                results.append(error.partial.outcome if error.partial else None)
        assert results == [execution.outcome] * 2
        if not task.cancelled() and task.exception() is None:
            assert task.result().outcome is execution.outcome
        if stop == "deadline" and offset > 0:
            assert execution.outcome is Outcome.TIMED_OUT
        if stop == "nothing" or offset < 0:
            assert execution.outcome is (Outcome.EXITED if code == 0 else Outcome.SIGNALED)
        channel.release()

    in_virtual_time(main())
