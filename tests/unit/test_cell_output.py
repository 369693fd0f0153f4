"""A cell's output as its sink takes it: awaited like that of a program, and never in the way of the cell's end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
import pytest

from sandbox.guest.execution import KILL_SECONDS
from sandbox.guest.sandbox import Sandbox
from sandbox.message import encode_json
from sandbox.result import Outcome
from sandbox.wire import CHUNK_BYTES, WINDOW_BYTES, Kind, encode
from tests.fakes.virtual_time import VirtualTimeLoop
from tests.fuzz.channel import Channel

T = TypeVar("T")
ANSWER = encode(Kind.ANSWER, 0, 1, encode_json({"number": 1, "value": None, "displayed": []}))
PIECES = [bytes([number]) * CHUNK_BYTES for number in range(WINDOW_BYTES // CHUNK_BYTES)]


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def _say(channel: Channel, pieces: list[bytes]) -> None:
    for piece in pieces:
        channel.say(encode(Kind.OUT, 0, 1, piece))


def test_a_sink_that_awaits_has_everything_in_order_before_the_result() -> None:
    """An asynchronous sink is awaited for each piece, also for those that come with the answer."""

    async def main() -> None:
        channel, seen = Channel(), list[bytes]()

        async def sink(_stream: str, data: bytes) -> None:
            await anyio.sleep(1.0)
            seen.append(data)

        asyncio.get_running_loop().call_later(1.0, _say, channel, PIECES)
        asyncio.get_running_loop().call_later(1.0, channel.say, ANSWER)
        await Sandbox(channel.client).open_context().run("1", on_output=sink)
        assert seen == PIECES
        channel.release()

    in_virtual_time(main())


def test_a_slow_sink_slows_the_code_down() -> None:
    """The guest gets no credit for what the sink has not taken, so that no more than a window waits on the host."""

    async def main() -> None:
        channel, may_go_on = Channel(), anyio.Event()

        async def sink(_stream: str, _data: bytes) -> None:
            await may_go_on.wait()

        async with anyio.create_task_group() as group:
            context = Sandbox(channel.client).open_context()
            group.start_soon(lambda: context.run("1", on_output=sink))
            await anyio.sleep(1.0)
            _say(channel, PIECES)
            await anyio.sleep(1.0)
            assert channel.heard.count(Kind.WINDOW_OUT) <= 1, "for the piece that the sink has"
            may_go_on.set()
            await anyio.sleep(1.0)
            assert channel.heard.count(Kind.WINDOW_OUT) > 1, "the control: a sink that takes it is given more"
            channel.say(ANSWER)
        channel.release()

    in_virtual_time(main())


@pytest.mark.parametrize("stream_ends", [True, False], ids=["code that ends", "code that writes on"])
def test_a_stuck_sink_does_not_hold_up_the_result_of_a_cell_that_timed_out(stream_ends: bool) -> None:
    """The code is let go to its end; what the sink misses is counted in the result."""

    async def main() -> None:
        channel, loop = Channel(), asyncio.get_running_loop()

        async def stuck(_stream: str, _data: bytes) -> None:
            await anyio.sleep_forever()

        context, begun = Sandbox(channel.client).open_context(), loop.time()
        more = [] if stream_ends else PIECES
        loop.call_later(0.5, _say, channel, PIECES)
        loop.call_later(1.5, _say, channel, more)
        loop.call_later(1.5, channel.say, ANSWER)
        result = await context.run("1", on_output=stuck, timeout=1.0)
        assert (result.outcome, result.context_alive) == (Outcome.TIMED_OUT, True)
        assert result.stdout_bytes == (len(PIECES) + len(more)) * CHUNK_BYTES
        assert loop.time() - begun <= 1.5 + KILL_SECONDS + 0.001
        channel.release()

    in_virtual_time(main())
