"""What a pool tells its observers, with real VMs."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest

from sandbox.config import PoolConfig
from sandbox.errors import GuestLost, PoolTimeout
from sandbox.event import EventKind, LifeEvent
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template


async def test_events_tell_the_whole_story(template: Template) -> None:
    """Each VM, lease and execution begins and ends once, under its own names; an observer that raises harms nobody."""
    seen: list[LifeEvent] = []

    def broken(_event: LifeEvent) -> None:
        raise ValueError("an observer's own mistake")

    pool = VMPool(PoolConfig(min_size=1, max_size=1), source=template.warmed(), observers=[broken, seen.append])
    async with pool:
        async with pool.acquire() as vm:
            name = vm.name
            await vm.run("print(1)", id="mine")
            with pytest.raises(PoolTimeout):
                await pool.claim(timeout=0.01)
        async with pool.acquire() as vm:
            os.kill(vm.pid, signal.SIGKILL)
            with pytest.raises(GuestLost):
                await vm.run("input()")
        await pool.wait_ready()
    kinds = Counter(event.kind for event in seen)
    assert kinds[EventKind.POOL_OPENED] == kinds[EventKind.POOL_CLOSED] == 1
    assert kinds[EventKind.VM_STARTED] == kinds[EventKind.VM_DESTROYED] == 3
    assert kinds[EventKind.LEASE_BEGAN] == kinds[EventKind.LEASE_ENDED] == 2
    assert kinds[EventKind.CLAIM_REFUSED] == 1
    assert kinds[EventKind.VM_START_FAILED] == 0
    first = {event.kind: event for event in seen if event.vm == name}
    assert first[EventKind.LEASE_ENDED].fields["why"] == "released"
    assert first[EventKind.LEASE_BEGAN].lease == first[EventKind.LEASE_ENDED].lease != ""
    ended = first[EventKind.EXECUTION_ENDED]
    assert (ended.execution, ended.fields["outcome"], ended.fields["exit_code"]) == ("mine", "exited", 0)
    assert ended.seconds is not None
    lost = [event for event in seen if event.kind is EventKind.LEASE_ENDED][1]
    assert (lost.fields["why"], lost.fields["cause"]) == ("lost", "qemu_killed")
    assert {event.pool for event in seen} == {pool.id}
