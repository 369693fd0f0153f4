"""What counts as use of a VM: what its caller asks and takes, and programs that run; not what we do by ourselves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
import pytest

from sandbox.guest.sandbox import Sandbox
from sandbox.guest.watchdog import SILENCE_SECONDS
from sandbox.message import encode_json
from sandbox.wire import Kind, encode
from tests.fakes.file_guest import FileGuest, says, stat_of
from tests.fakes.virtual_time import VirtualTimeLoop
from tests.fuzz.channel import Channel

T = TypeVar("T")
HOUR = 3600.0


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def test_a_file_server_that_waits_idle_is_no_use() -> None:
    """After a call of `files` the VM is idle, however often its guest is asked for a sign of life meanwhile."""

    async def main() -> None:
        guest = FileGuest(lambda _: [says(stat=stat_of("file"))])
        await guest.files.stat("x")
        assert guest.client.idle_seconds == pytest.approx(0.0)
        await anyio.sleep(HOUR)
        assert guest.heard.count(Kind.PING) > HOUR / SILENCE_SECONDS / 3, "the control: it was asked meanwhile"
        assert guest.client.idle_seconds == pytest.approx(HOUR)
        await guest.files.stat("x")
        assert guest.client.idle_seconds == pytest.approx(0.0)
        guest.release()

    in_virtual_time(main())


def test_a_vm_is_idle_from_the_end_of_a_cell_on() -> None:
    """While a cell runs its VM is used; when it has ended, the time before does not count as idle."""
    answer = encode(Kind.ANSWER, 0, 1, encode_json({"number": 1, "value": None, "displayed": []}))

    async def main() -> None:
        channel, loop = Channel(), asyncio.get_running_loop()
        context = Sandbox(channel.client).open_context()
        for second in range(1, 60):  # it says something, so that it is not taken for dead
            loop.call_later(second, channel.say, encode(Kind.OUT, 0, 1, b"."))
        loop.call_later(60, channel.say, answer)
        async with anyio.create_task_group() as group:
            group.start_soon(context.run, "work()")
            await anyio.sleep(50)
            assert channel.client.idle_seconds == 0.0
        assert channel.client.idle_seconds == pytest.approx(0.0)
        await anyio.sleep(3)
        assert channel.client.idle_seconds == pytest.approx(3.0)
        channel.release()

    in_virtual_time(main())
