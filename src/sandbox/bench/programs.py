"""The figures of what runs inside a leased VM."""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.bench.figure import Figure

if TYPE_CHECKING:
    from sandbox.bench.suite import Suite

MIB = 1024 * 1024
_DEADLINE = 0.2
_STUBBORN = "trap '' TERM INT HUP; setsid sleep 1000 & sleep 1000 & while true; do sleep 1000; done"


async def round_trip(suite: Suite) -> Figure:
    """An interpreter that is there already, and one small expression."""
    figure = suite.figure("E1", "persistent interpreter, round trip", "call → value (T0 → T6), one VM, one context")
    async with suite.template.lease() as vm, vm.context() as context:
        await context.run("x = 1")
        for index in range(suite.n(200) + 20):
            started = time.monotonic()
            result = await context.run("x + 1")
            seconds = time.monotonic() - started
            if result.value != {"text/plain": "2"}:
                raise RuntimeError(f"the context answered {result!r}")
            if index >= 20:
                figure.samples.append(seconds)
    return figure


async def upload(suite: Suite) -> Figure:
    """A mebibyte into a file of the guest."""
    figure = suite.figure("E6UP", "1 MiB into a file", "call → written (T0 → T6), one VM")
    data = os.urandom(MIB)
    async with suite.template.lease() as vm:
        for index in range(suite.n(100) + 3):
            started = time.monotonic()
            written = await vm.files.write("data", data)
            if index >= 3:
                figure.samples.append(time.monotonic() - started)
            assert written.size == MIB
        assert await vm.files.read("data") == data
    return figure


async def download(suite: Suite) -> Figure:
    """A mebibyte out of a file of the guest."""
    figure = suite.figure("E6DOWN", "1 MiB out of a file", "call → content (T0 → T6), one VM")
    data = os.urandom(MIB)
    async with suite.template.lease() as vm:
        await vm.files.write("data", data)
        for index in range(suite.n(100) + 3):
            started = time.monotonic()
            content = await vm.files.read("data")
            if index >= 3:
                figure.samples.append(time.monotonic() - started)
            assert content == data
    return figure


async def overshoot(suite: Suite) -> Figure:
    """A tree that ignores every polite signal, with children in sessions of their own."""
    figure = suite.figure("E7", "time-out overshoot, whole tree", "deadline → result, the tree is dead")
    async with suite.template.lease() as vm:
        for index in range(suite.n(100) + 3):
            started = time.monotonic()
            result = await vm.exec(_STUBBORN, timeout=_DEADLINE)
            seconds = time.monotonic() - started - _DEADLINE
            left = await vm.exec("pgrep -c sleep")
            if not result.timed_out or left.text.strip() != "0":
                raise RuntimeError(f"{result!r} left {left.text.strip()} processes behind")
            if index >= 3:
                figure.samples.append(seconds)
    return figure


async def memory_per_vm(suite: Suite) -> Figure:
    """What this process grows by with each further leased VM, a command run in each."""
    figure = suite.figure("C2", "library memory per leased VM", "resident set of this process, one more lease", "bytes")
    async with AsyncExitStack() as stack:
        before = 0
        for index in range(suite.n(100) + 5):
            vm = await stack.enter_async_context(suite.template.lease())
            (await vm.run("print(1)")).check()
            now = _resident_bytes()
            if index >= 5:
                figure.samples.append(float(now - before))
            before = now
    return figure


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
