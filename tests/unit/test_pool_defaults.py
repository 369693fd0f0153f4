"""What a pool's configuration gives to calls that do not say it: time-outs, limits, and patience with a kill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from sandbox.config import Limits
from sandbox.errors import GuestLost
from sandbox.guest.context import INTERRUPT_SECONDS
from sandbox.guest.deadlines import MOST_PATIENCE
from sandbox.guest.execution import KILL_SECONDS
from sandbox.guest.sandbox import Sandbox
from sandbox.result import Outcome
from sandbox.wire import HOST_LIMITS, Decoder, Kind, encode
from tests.fakes.virtual_time import VirtualTimeLoop
from tests.fuzz.channel import Channel

T = TypeVar("T")
LIMITS = Limits(processes=7)


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


class Listening(Channel):
    """Keeps what was asked for in each START."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self._frames = Decoder(HOST_LIMITS)
        super().__init__()

    def write(self, data: bytes) -> None:
        super().write(data)
        starts = [frame for frame in self._frames.feed(data) if frame.kind is Kind.START]
        self.started += [json.loads(frame.payload) for frame in starts]


def _with_defaults(**given: Any) -> tuple[Listening, Sandbox]:
    channel = Listening()
    vm = Sandbox(channel.client)
    vm.set_defaults(**{"timeout": None, "idle_timeout": None, "limits": None, **given})
    return channel, vm


@pytest.mark.parametrize("own", [{}, {"timeout": 5.0}])
def test_a_call_without_a_time_out_has_the_pools(own: dict[str, float]) -> None:
    """A call's own number is stronger than the pool's."""

    async def main() -> None:
        _, vm = _with_defaults(timeout=1.0)
        loop = asyncio.get_running_loop()
        result = await vm.run("while True: pass", **own)  # type: ignore[arg-type]
        assert result.outcome is Outcome.TIMED_OUT
        assert loop.time() == pytest.approx(own.get("timeout", 1.0) + KILL_SECONDS)

    in_virtual_time(main())


def test_none_of_the_calls_own_is_none() -> None:
    """A program that may take as long as it likes is started with `timeout=None`; so with silence and limits."""

    async def main() -> None:
        channel, vm = _with_defaults(timeout=1.0, idle_timeout=1.0, limits=LIMITS)
        execution = await vm.spawn("x", timeout=None, idle_timeout=None, limits=None)
        for second in range(1, 60):
            asyncio.get_running_loop().call_later(second, channel.say, encode(Kind.OUT, 0, 1, b"."))
        await asyncio.sleep(60)
        assert not execution.has_ended
        await vm.spawn("y")
        assert "limits" not in channel.started[0]
        assert channel.started[1]["limits"] == {"processes": 7}, "the control: other calls have them"
        channel.release()

    in_virtual_time(main())


def test_a_cell_has_the_pools_time_out_and_its_interpreter_has_not() -> None:
    """The limits are the interpreter's; it may be silent and live for as long as it likes."""

    async def main() -> None:
        channel, vm = _with_defaults(timeout=100.0, idle_timeout=1.0, limits=LIMITS)
        context = vm.open_context()
        assert channel.started[0]["limits"] == {"processes": 7}
        loop = asyncio.get_running_loop()
        for second in range(1, 200):
            loop.call_later(second, _say_if_open, channel, encode(Kind.OUT, 0, 1, b"."))
        await asyncio.sleep(50)
        assert context.is_alive
        result = await context.run("while True: pass")
        assert result.outcome is Outcome.TIMED_OUT
        assert loop.time() >= 150 + INTERRUPT_SECONDS

    in_virtual_time(main())


def _say_if_open(channel: Channel, data: bytes) -> None:
    if channel.client.lost is None:
        channel.say(data)


@pytest.mark.parametrize(
    ("patience", "talks", "least", "most"), [(2, False, 2, 2.01), (5, False, 5, 5.01), (2, True, 4, 6)]
)
def test_a_guest_has_as_long_to_obey_as_the_pool_says(patience: float, talks: bool, least: float, most: float) -> None:
    """One that still says something while it is to obey is only busy, and gets more time, up to a bound."""

    async def main() -> float:
        channel, vm = _with_defaults()
        channel.client.kill_patience = patience
        loop = asyncio.get_running_loop()
        execution = await vm.spawn("x")
        if talks:
            for tenth in range(1, 1000):
                loop.call_later(tenth / 10, _say_if_open, channel, encode(Kind.OUT, 0, 1, b"."))
        execution.kill()
        with pytest.raises(GuestLost, match="did not obey"):
            await execution.wait()
        return loop.time()

    assert least <= in_virtual_time(main()) <= most <= MOST_PATIENCE * patience + 0.01


def test_time_in_which_the_event_loop_was_held_up_is_none_of_the_guests() -> None:
    """Its answer may have been there all the time: the loop looks for it before it gives up."""

    async def main() -> None:
        channel, vm = _with_defaults()
        loop = asyncio.get_running_loop()
        execution = await vm.spawn("x")
        execution.kill()
        loop.call_later(0.1, _hold_up, loop, 3 * KILL_SECONDS - 0.2)
        loop.call_later(
            0.2, lambda: loop.call_soon(channel.say, encode(Kind.EXITED, 0, 1, b'{"code":null,"signal":9}'))
        )
        assert (await execution.wait()).signal == 9
        channel.release()

    in_virtual_time(main())


def _hold_up(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Let time pass in which nothing else runs."""
    loop._clock.now += seconds  # type: ignore[attr-defined]
