"""Guests that burn a processor leave it to the process that serves them."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from anyio import to_thread

from sandbox.config import HostConfig
from sandbox.errors import ConfigError
from sandbox.hypervisor.confinement import Confinement
from sandbox.template.template import Template
from sandbox.vm import VM

BURN = ["python3", "-c", "while True: pass"]
SECONDS = 1.0
NICE = HostConfig().nice


def _threads(pid: int) -> list[int]:
    return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]


@asynccontextmanager
async def _burning(template: Template, count: int) -> AsyncIterator[list[VM]]:
    """So many VMs, each with a program that never rests, and all of them on our own processor."""
    here = os.sched_getaffinity(0)
    processor = {min(here)}
    async with AsyncExitStack() as stack:
        vms = [await stack.enter_async_context(template.lease()) for _ in range(count)]
        for vm in vms:
            await vm.spawn(BURN, timeout=60)
            for thread in _threads(vm.pid):
                os.sched_setaffinity(thread, processor)
        os.sched_setaffinity(0, processor)
        try:
            yield vms
        finally:
            os.sched_setaffinity(0, here)


def _session_nice(pid: int) -> int | None:
    """Return by how much a session yields to others; None where processors are not shared out among sessions."""
    try:
        return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])
    except FileNotFoundError:
        return None


def _share() -> float:
    """Return how much of a processor this thread gets while it asks for all of it."""
    began, used = time.monotonic(), time.thread_time()
    while time.monotonic() < began + SECONDS:
        pass
    return (time.thread_time() - used) / (time.monotonic() - began)


async def test_every_thread_of_a_vm_yields(vm: VM) -> None:
    """QEMU's own threads, the virtual processor's and those that it starts later; the session too, where it counts."""
    (await vm.run("print(1)")).check()
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in _threads(vm.pid)} == {NICE}
    assert (await to_thread.run_sync(Confinement.of, vm.pid)).nice == NICE > 0
    assert await to_thread.run_sync(_session_nice, vm.pid) in (NICE, None)


async def test_guests_that_burn_leave_the_processor_to_us(
    template: Template, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one processor with two of them we get most of it; the control's, which do not yield, take most of it."""
    async with _burning(template, 2):
        share = _share()
    monkeypatch.setattr(template.host.starter, "_nice", 0)
    async with _burning(template, 2) as vms:
        assert {os.getpriority(os.PRIO_PROCESS, vm.pid) for vm in vms} == {0}
        control = _share()
    with capsys.disabled():
        print(f"\npriority: {share:.0%} of a processor beside two busy VMs; control {control:.0%}")  # noqa: T201
    assert control < 0.5 < share


@pytest.mark.parametrize("value", ["-1", "20", "much"])
def test_what_nobody_can_yield_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM cannot be put before others, nor below the kernel's last."""
    monkeypatch.setenv("SANDBOX_NICE", value)
    with pytest.raises(ConfigError, match="nice"):
        HostConfig()
