"""What reaches a caller while the program runs, and what does not hold it up."""

from __future__ import annotations

import time

import anyio

from sandbox.guest.events import StreamName
from sandbox.result import Outcome
from sandbox.vm import VM


async def test_stuck_sink_does_not_hold_up_a_deadline(vm: VM) -> None:
    """A caller whose `on_output` never returns still gets the time-out's result soon after the deadline."""

    async def stuck(_stream: StreamName, _data: bytes) -> None:
        await anyio.sleep_forever()

    started = time.monotonic()
    result = await vm.exec("yes", on_output=stuck, timeout=0.5)
    assert result.outcome is Outcome.TIMED_OUT
    assert time.monotonic() - started < 4


async def test_slow_sink_slows_the_program_and_loses_nothing(vm: VM) -> None:
    """Every byte of a fast program reaches a slow caller, and no more than a window waits meanwhile."""
    seen = bytearray()

    async def slow(_stream: StreamName, data: bytes) -> None:
        seen.extend(data)
        await anyio.sleep(0.005)

    result = await vm.exec(["seq", "1", "200000"], on_output=slow, timeout=60)
    assert result.ok
    assert bytes(seen) == result.stdout == b"".join(b"%d\n" % number for number in range(1, 200_001))
