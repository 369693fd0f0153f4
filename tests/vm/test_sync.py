"""The synchronous twin, in a thread without an event loop and beside a running one."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import pytest
from anyio.to_thread import run_sync

import sandbox.sync
from sandbox.config import HostConfig, PoolConfig
from sandbox.errors import ConfigError, GuestFileError
from sandbox.guest.events import Ended, Output
from sandbox.hypervisor.inventory import leaks, owners
from sandbox.sync.portal import portal
from sandbox.template.template import Template

T = TypeVar("T")


async def _in_thread(function: Callable[[], T]) -> T:
    """The test's own event loop stays free, as a caller's would not; the portal has its own."""
    return await run_sync(function)


async def test_one_line_runs_code(template: Template) -> None:
    """`sandbox.sync.run` needs nothing but code."""
    assert (await _in_thread(lambda: sandbox.sync.run("print(1)"))).text == "1\n"


async def test_pool_and_everything_inside_a_vm(template: Template) -> None:
    """Programs, followed executions, contexts and files have the same names and do the same."""

    def use() -> None:
        with sandbox.sync.VMPool(PoolConfig(min_size=1, max_size=2)) as pool:
            pool.wait_ready()
            assert pool.run("print('pooled')").text == "pooled\n"
            with pool.acquire(timeout=30) as vm:
                assert vm.run("echo $1", language="bash", args=["x"]).text == "x\n"
                execution = vm.spawn("cat", stdin=None, id="cat")
                execution.write(b"hello")
                execution.close_stdin()
                events = list(execution.events())
                assert b"".join(event.data for event in events if isinstance(event, Output)) == b"hello"
                assert isinstance(events[-1], Ended)
                assert vm.attach("cat").wait().ok
                with vm.context() as context:
                    context.run("x = 20")
                    value = context.run("x + 1").value
                    assert value is not None
                    assert value["text/plain"] == "21"
                with vm.files.watch() as changes:
                    vm.write_file("a", b"1")
                    assert next(changes).path == "a"
                assert vm.files.read("a") == b"1"
                assert b"".join(vm.files.stream("a")) == b"1"
                left_early = vm.files.stream("/bin/bash")
                assert next(left_early)
                left_early.close()
                assert next(left_early, None) is None
                with pytest.raises(GuestFileError):
                    vm.read_file("nothing")
            statistics = pool.statistics()
            assert statistics.claimed == statistics.released + statistics.leased

    await _in_thread(use)


async def test_errors_come_through_as_themselves(template: Template) -> None:
    """A caller's mistake is told as such, not as a failure of the portal."""
    with pytest.raises(ConfigError):
        await _in_thread(lambda: sandbox.sync.run("", timeout=-1))


async def test_iterations_left_behind_wait_for_nothing(template: Template) -> None:
    """The garbage collector may find them in the portal's own thread, which could not wait for itself."""

    def leave() -> None:
        with sandbox.sync.VMPool(PoolConfig(min_size=1)) as pool, pool.acquire(timeout=30) as vm:
            execution = vm.spawn("seq 10; exec cat", stdin=None)
            for iteration in (vm.files.stream("/bin/bash"), execution.events()):
                assert next(iter(iteration))
                cycle: list[object] = [iteration]
                cycle.append(cycle)
            del iteration, cycle
            # Whoever collects, the portal's thread does, before it goes on with what it was asked.
            portal().call(_collect())
            execution.write(b"more")
            execution.close_stdin()
            assert execution.wait().stdout.endswith(b"10\nmore")

    await _in_thread(leave)


async def _collect() -> None:
    gc.collect()


def test_interrupt_destroys_the_vm_before_it_is_raised() -> None:
    """Ctrl-C in a plain script ends the call as KeyboardInterrupt, and nothing is left running."""
    code = (
        "import sandbox.sync, os\n"
        "def seen(stream, data):\n"
        "    os.write(1, data)\n"
        "sandbox.sync.run('print(1, flush=True)\\nwhile True: pass', on_output=seen)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith(b"KeyboardInterrupt")
    assert not [line for line in leaks(HostConfig().runtime_dir) if f"process {process.pid} " in line]
    assert process.pid not in [record.pid for record in owners(HostConfig().runtime_dir)]
