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
from sandbox.errors import ConfigError, GuestFileError, StateError
from sandbox.event import EventKind, LifeEvent
from sandbox.guest.events import Ended, Output
from sandbox.hypervisor.inventory import leaks, owners
from sandbox.observe.metrics import Metrics
from sandbox.sync.portal import portal
from sandbox.template.template import Template

T = TypeVar("T")


class Plain:
    """A source of VMs that is no template, so it has no generations."""

    def __init__(self, template: Template) -> None:
        self.lease = template.lease


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


async def test_leases_events_and_generations(template: Template) -> None:
    """A pool is claimed from, watched and asked as the asynchronous one, with the same arguments."""
    seen: list[tuple[EventKind, int]] = []
    further: list[LifeEvent] = []

    def use() -> None:
        def hook(event: LifeEvent) -> None:
            seen.append((event.kind, pool.statistics().leased))
            if event.kind is EventKind.POOL_OPENED:
                metrics.watch(pool)

        metrics = Metrics()
        sources, observers = {"default": Plain(template)}, (hook, metrics)
        pool = sandbox.sync.VMPool(PoolConfig(min_size=1), sources=sources, observers=observers)
        with pool:
            pool.wait_ready()
            end = pool.observe(further.append)
            with pool.claim(timeout=30, priority=1, lease_ttl=600) as vm:
                assert vm.run("print(1)").text == "1\n"
                assert vm.receipt is not None
                assert vm.receipt.origin == "hit"
                assert "claim" in vm.timings
                assert vm.is_alive
                assert vm.loss is None
                assert 'sandbox_vms{state="leased",template="default"} 1.0' in metrics.text()
            end()
            lease = pool.claim(timeout=30, lease_ttl=600)
            assert 0 < (lease.left or 0) <= 600
            lease.renew(None)
            assert lease.left is None
            assert not lease.has_ended
            lease.release()
            lease.wait_ended()
            with pytest.raises(StateError, match="has ended"):
                lease.renew(1)
            with pytest.raises(ConfigError, match="no template 'other'"), pool.acquire(template="other"):
                pass
            assert pool.statistics("default").claimed == 2
            assert [generation.is_live for generation in pool.generations()] == [True]
            for change in (pool.roll_over, pool.roll_back):
                with pytest.raises(StateError, match="no generations"):
                    change()
            assert not pool.is_closed
        assert pool.is_closed

    await _in_thread(use)
    kinds = [kind for kind, _ in seen]
    assert (kinds.count(EventKind.LEASE_BEGAN), kinds.count(EventKind.LEASE_ENDED)) == (2, 2)
    assert dict(seen)[EventKind.LEASE_BEGAN] == 1
    assert [event.kind for event in further].count(EventKind.LEASE_BEGAN) == 1


async def test_callback_may_ask_and_end_but_not_wait(template: Template) -> None:
    """In the thread that all calls wait for, what does not wait is done at once, and what would wait is refused."""

    def use() -> None:
        with sandbox.sync.VMPool(PoolConfig(min_size=1), source=template) as pool, pool.acquire(timeout=30) as vm:
            other = vm.spawn("exec cat", stdin=None)
            vm.run("print(1)", on_output=lambda _stream, _data: other.kill())
            assert not other.wait().ok
            with vm.context() as context:
                heard = []
                context.run("print(2)", on_output=lambda stream, data: heard.append((stream, data, context.is_alive)))
                assert {(stream, is_alive) for stream, _, is_alive in heard} == {("stdout", True)}
                assert b"".join(data for _, data, _ in heard) == b"2\n"

    await _in_thread(use)


async def test_interrupt_of_an_idle_context_does_nothing(template: Template) -> None:
    """Also before its interpreter is up, which a bare signal would end."""

    def use() -> None:
        with sandbox.sync.VMPool(PoolConfig(min_size=1), source=template) as pool, pool.acquire(timeout=30) as vm:
            context = vm.open_context("bash")
            context.interrupt()
            assert context.run("echo 1").text == "1\n"
            assert context.is_alive
            assert context.language == "bash"
            context.close()
            assert context.execution.has_ended

    await _in_thread(use)


@pytest.mark.usefixtures("template")
def test_callback_that_would_wait_is_refused() -> None:
    """A call from a callback would wait for itself, and every other caller with it; it raises, and the pool goes on."""
    code = (
        "import sandbox.sync\n"
        "from sandbox import PoolConfig, StateError\n"
        "with sandbox.sync.VMPool(PoolConfig(min_size=1)) as pool, pool.acquire() as vm:\n"
        "    try:\n"
        "        vm.run('print(1)', on_output=lambda stream, data: vm.write_file('log', data))\n"
        "    except StateError as error:\n"
        "        print(error)\n"
        "    print(vm.run('print(2)').text)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    refused, text, _ = done.stdout.decode().split("\n", 2)
    assert "`events()`" in refused
    assert text == "2"
    assert done.stderr == b""


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


@pytest.mark.usefixtures("template")
@pytest.mark.parametrize("last", ["sys.exit(3)", "other = pool.claim(); other.vm.spawn('sleep 1000'); sys.exit(3)"])
def test_a_script_that_ends_without_close_ends_in_order(last: str) -> None:
    """Pools end first and start nothing more, then libvirt: the exit status is the script's, and nothing is printed."""
    code = (
        "import sandbox.sync, sys\n"
        "from sandbox import PoolConfig\n"
        "pool = sandbox.sync.VMPool(PoolConfig(min_size=2, max_size=4, idle_lease_timeout=60))\n"
        "pool.open()\n"
        "print(pool.run('print(1)').text, end='')\n"  # others start meanwhile
        f"lease = pool.claim()\n{last}\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (3, b"", b"")
    assert not [line for line in leaks(HostConfig().runtime_dir) if f"process {process.pid} " in line]
    assert process.pid not in [record.pid for record in owners(HostConfig().runtime_dir)]
