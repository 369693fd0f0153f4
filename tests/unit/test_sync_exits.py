"""`sys.exit()` and the like in code of the caller's, which runs in the thread that all synchronous calls wait for."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NoReturn, TypeVar

import anyio
import anyio.lowlevel
import pytest

from sandbox.errors import StateError
from sandbox.event import EventKind, LifeEvent
from sandbox.guest.sandbox import Sandbox
from sandbox.message import encode_json
from sandbox.pool.broadcast import Broadcast
from sandbox.sync.portal import Portal
from sandbox.wire import Kind, encode
from tests.fuzz.channel import Channel
from tests.in_time import SECONDS, in_time

T = TypeVar("T")
EXITS = [SystemExit(3), KeyboardInterrupt("3"), pytest.fail.Exception("3")]
"""Whatever is no `Exception`; the last is how a test in a callback fails."""


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal()
    yield portal
    portal.stop()
    portal._loop.close()


def _raised(function: Callable[[], object]) -> BaseException | None:
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - it is what is tested
        return error
    return None


def _raiser(error: BaseException) -> Callable[..., NoReturn]:
    def do(*_: object) -> NoReturn:
        raise error

    return do


class Echo(Channel):
    """A guest that writes a word as soon as something is started or asked, and ends what it is to kill."""

    def write(self, data: bytes) -> None:
        super().write(data)
        loop = asyncio.get_running_loop()
        if self.heard[-1] in (Kind.STDIN_EOF, Kind.ASK):
            loop.call_soon(self.say_if_open, encode(Kind.OUT, 0, 1, b"word"))
            if self.heard[-1] is Kind.ASK:
                answer = encode_json({"number": 1, "value": None, "displayed": []})
                loop.call_soon(self.say_if_open, encode(Kind.ANSWER, 0, 1, answer))
        elif self.heard[-1] is Kind.KILL:
            loop.call_soon(self.say_if_open, encode(Kind.EXITED, 0, 1, b'{"code":null,"signal":9}'))

    def say_if_open(self, data: bytes) -> None:
        if self.client.lost is None:
            self.say(data)


async def _run(**options: Any) -> None:
    guest = Echo()
    try:
        await Sandbox(guest.client).exec(["x"], **options)
    finally:
        assert Kind.KILL in guest.heard, "the program does not outlive its caller's mistake"
        guest.release()


async def _run_cell(**options: Any) -> None:
    guest = Echo()
    try:
        await Sandbox(guest.client).open_context().run("1", **options)
    finally:
        guest.release()


async def _bad_input(error: BaseException) -> AsyncIterator[bytes]:
    yield b"first"
    await anyio.lowlevel.checkpoint()
    raise error


@pytest.mark.parametrize("error", EXITS, ids=repr)
@pytest.mark.parametrize("where", ["output", "input", "cell"])
def test_what_a_callback_raises_is_its_callers(portal: Portal, error: BaseException, where: str) -> None:
    """`sys.exit()` in a callback is raised from the call that it belongs to, and ends nothing else."""

    async def call() -> None:
        if where == "output":
            await _run(on_output=_raiser(error))
        elif where == "input":
            await _run(stdin=_bad_input(error))
        else:
            await _run_cell(on_output=_raiser(error))

    assert in_time(lambda: _raised(lambda: portal.call(call()))) is error
    assert in_time(lambda: portal.do(lambda: 2)) == 2, "others' calls go on"


@pytest.mark.parametrize("error", EXITS, ids=repr)
async def test_an_observer_that_exits_harms_nobody(error: BaseException) -> None:
    """It is logged like any other mistake of an observer, and those after it hear the event."""
    heard: list[LifeEvent] = []
    broadcast = Broadcast("pool", [_raiser(error), heard.append])
    broadcast.tell(EventKind.POOL_OPENED)
    broadcast.tell(EventKind.POOL_CLOSED)
    assert [event.kind for event in heard] == [EventKind.POOL_OPENED, EventKind.POOL_CLOSED]


def test_an_exit_that_is_nobodys_call_does_not_end_the_thread(portal: Portal) -> None:
    """A timer's `sys.exit()`, or a callback that stops the loop: calls that wait get their answers."""

    async def call() -> int:
        loop = asyncio.get_running_loop()
        loop.call_soon(sys.exit)
        loop.call_later(0.01, loop.stop)
        await asyncio.sleep(0.05)
        return 1

    assert in_time(lambda: portal.call(call())) == 1


def test_calls_fail_when_the_thread_has_ended(portal: Portal) -> None:
    """One that waits and one that comes later: both say what has happened instead of waiting for ever."""
    waits = threading.Event()

    async def call() -> None:
        waits.set()
        await asyncio.Event().wait()

    errors: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: errors.append(_raised(lambda: portal.call(call()))), daemon=True)
    thread.start()
    assert waits.wait(SECONDS)
    portal.stop()
    thread.join(SECONDS)
    errors.append(in_time(lambda: _raised(lambda: portal.do(lambda: None))))
    assert [type(error) for error in errors] == [StateError, StateError]
    assert "has ended" in str(errors[0])
