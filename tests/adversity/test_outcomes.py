"""Calls that are cancelled and VMs that go: whoever waits hears of it at once, and the cause is the true one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine

import anyio
import pytest

from sandbox.certificate import Cause
from sandbox.errors import GuestLost, StateError
from sandbox.guest.execution import Status
from sandbox.result import CellResult, Outcome
from sandbox.template.template import Template
from sandbox.vm import VM


async def _endless() -> AsyncIterator[bytes]:
    yield b"beginning"
    await anyio.sleep_forever()


async def _never() -> AsyncIterator[bytes]:
    await anyio.sleep_forever()
    yield b""


async def test_a_cancelled_call_is_seen_as_cancelled_by_who_attaches(vm: VM) -> None:
    """The program of a cancelled call is killed; another task finds how it ended, and what it had written."""
    arrived = anyio.Event()
    async with anyio.create_task_group() as group:

        async def call() -> None:
            await vm.exec("echo begun; sleep 1000 & sleep 1001", id="mine", on_output=lambda *_: arrived.set())

        group.start_soon(call)
        await arrived.wait()
        group.cancel_scope.cancel()
    with anyio.fail_after(5):
        result = await vm.attach("mine").wait()
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.CANCELLED, None, b"begun\n")
    assert result.certificate is not None
    assert (result.certificate.cause, result.certificate.retry_safe) == (Cause.CANCELLED, False)
    assert b"sleep" not in (await vm.exec("ps -e -o comm=")).stdout


async def test_a_wait_that_is_cancelled_changes_nothing(vm: VM) -> None:
    """Who stops waiting for a background program leaves it running."""
    execution = await vm.spawn("read x; echo $x", stdin=None)
    with anyio.move_on_after(0.05):
        await execution.wait()
    assert execution.status is Status.RUNNING
    await execution.write(b"on\n")
    assert (await execution.wait()).stdout == b"on\n"


@pytest.mark.parametrize(
    ("end", "cause"), [("release", Cause.RELEASED), ("kill", Cause.QEMU_KILLED)], ids=["released", "killed"]
)
async def test_all_who_wait_hear_at_once_when_the_vm_goes(template: Template, end: str, cause: Cause) -> None:
    """A program, a context, a file and a watcher under way: each waiter gets `GuestLost`, its cause and its part."""
    heard: dict[str, GuestLost] = {}
    times: list[float] = []
    ready, all_heard = anyio.Semaphore(0), anyio.Event()

    async with anyio.create_task_group() as group, template.lease() as vm:

        async def expect(name: str, wait: Coroutine[None, None, object]) -> None:
            try:
                await wait
            except GuestLost as error:
                heard[name] = error
                times.append(time.monotonic())
            if len(heard) == 7:
                all_heard.set()

        execution = await vm.spawn("echo part; echo error >&2; sleep 1000", id="mine")
        context = vm.open_context()
        await context.run("x = 1")

        async def follow() -> None:
            async for _ in execution.events():
                ready.release()

        async def cell() -> None:
            await context.run("print('cell\\n', end='')\nimport time; time.sleep(1000)", on_output=release)

        def release(*_: object) -> None:
            ready.release()

        async def watch() -> None:
            async with vm.files.watch() as changes:
                ready.release()
                async for _ in changes:
                    pass

        async def copy() -> None:
            await vm.files.write("endless", _endless())

        async def run() -> None:
            await vm.run("import os; os.write(1, b'run\\n'); input()", stdin=_never(), on_output=release)

        for name, wait in {
            "first": execution.wait(),
            "second": execution.wait(),
            "events": follow(),
            "cell": cell(),
            "watch": watch(),
            "write": copy(),
            "run": run(),
        }.items():
            group.start_soon(expect, name, wait)
        for _ in range(6):  # start, two outputs, cell, watch, run
            await ready.acquire()
        ended = time.monotonic()
        if end == "kill":
            os.kill(vm.pid, signal.SIGKILL)
            with anyio.fail_after(5):
                await all_heard.wait()
    assert set(heard) == {"first", "second", "events", "cell", "watch", "write", "run"}
    assert max(times) - ended < 2
    for error in heard.values():
        assert error.certificate is not None
        assert (error.certificate.cause, error.certificate.retry_safe) == (cause, False)
    partial = heard["first"].partial
    assert partial is not None
    assert (partial.outcome, partial.stdout, partial.stderr) == (Outcome.VM_LOST, b"part\n", b"error\n")
    assert heard["first"] is not heard["second"], "two callers share no traceback"
    cell_partial, run_partial = heard["cell"].partial, heard["run"].partial
    assert isinstance(cell_partial, CellResult)
    assert (cell_partial.stdout, cell_partial.context_alive) == (b"cell\n", False)
    assert run_partial is not None
    assert run_partial.stdout == b"run\n"
    with pytest.raises(StateError, match="has ended"):
        await vm.exec("true")
    with pytest.raises(StateError, match="has ended"):
        await vm.files.read("x")
    with pytest.raises(StateError):
        await context.run("1")
    assert vm.status("mine") is Status.FINISHED
    assert vm.status("another") is Status.NEVER_STARTED
