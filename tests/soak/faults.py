"""What goes wrong in a soak, drawn from its seed: the same number of a cycle meets the same fault in every run."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from enum import StrEnum

from sandbox.pool.pool import VMPool
from sandbox.pool.slot import Slot, SlotState


class Fault(StrEnum):
    """Each is met by one lease, except those of the warm set, which are met by a VM that nobody holds."""

    NONE = "none"
    KILL_IDLE = "kill the leased VM while nothing runs"
    KILL_RUNNING = "kill it while a program runs"
    KILL_TRANSFER = "kill it while a file goes in"
    KILL_RELEASE = "kill it as it is released"
    STOP_RUNNING = "stop its QEMU while a program runs"
    KILL_WARM = "kill a VM of the warm set, or one that starts"
    STOP_AND_KILL_WARM = "stop such a one, then kill it"
    POWER_OFF = "the guest powers itself off"
    TIME_OUT = "a program runs over its time"
    CANCEL_CLAIM = "the claim is cancelled"
    CANCEL_RUN = "the run is cancelled"
    RELEASE_TWICE = "the lease is released twice"


_NONE_WEIGHT = 12


def draw(source: random.Random) -> Fault:
    """Return the next fault; about every second time none."""
    weights = [_NONE_WEIGHT if fault is Fault.NONE else 1 for fault in Fault]
    return source.choices(list(Fault), weights)[0]


class Victims:
    """Signals QEMU processes, and remembers which: a lease that loses its VM to us is accounted for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def signal(self, name: str, pid: int, number: signal.Signals) -> None:
        """Send a signal to a VM's QEMU, which is a child of ours: its pid is its own until it was reaped."""
        self.names.add(name)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    def forget_dead(self, pool: VMPool) -> None:
        """Keep the names of VMs that still exist only, so that this record does not grow."""
        self.names &= {slot.vm.name for slot in _slots(pool) if slot.vm is not None}

    def pick(self, pool: VMPool, source: random.Random) -> tuple[str, int] | None:
        """Return name and pid of a VM that no caller holds."""
        candidates = sorted(_unheld(pool))
        return source.choice(candidates) if candidates else None


def _slots(pool: VMPool) -> Iterator[Slot]:
    for shelf in pool._keeper.shelves.values():
        yield from shelf.slots


def _unheld(pool: VMPool) -> Iterator[tuple[str, int]]:
    for slot in _slots(pool):
        held = slot.state in (SlotState.LEASED, SlotState.ENDING)
        if slot.vm is not None and slot.vm.is_alive and not held:
            yield slot.vm.name, slot.vm.pid
