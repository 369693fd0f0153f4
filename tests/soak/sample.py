"""What this process holds at rest, and whether it grows."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sandbox.hypervisor.inventory import find_machines
from sandbox.template.template import Template
from tests.soak.heap import malloc_kib, python_blocks, trim

ALLOWED = {"processes": 0, "descriptors": 0, "threads": 0, "workers": 4, "tasks": 0, "files": 0, "domains": 0}
"""Growth that counts as none. Worker threads come and go with the load; all else is the same whenever we rest."""
ALLOWED_MEMORY = {"rss_kib": 5 * 1024, "heap_kib": 1024, "blocks": 2000}
"""Of 220,000 blocks some hundreds come and go at rest; none were added in 1,000 cycles. Of the heap's 12 MiB, each
living VM has 37 KiB, libvirt's copy of what its QEMU can do, and glibc counts as given out what each thread keeps for
itself, up to 0.2 MiB: the heap grew by 0.3 MiB in 300 cycles, as threads filled theirs, and then no more. So 10,000
cycles tell of a leak of one object in three cycles, or of 160 bytes in each. Resident memory is compared after malloc
has given back its free pieces: each thread's arena keeps what the busiest moment so far has needed, so those grow with
the luck of the moments and not with what is in use.
"""
MEMORY_CYCLES = 200
"""Over fewer cycles than this, growth of memory tells nothing: caches are still filling."""


@dataclass(frozen=True)
class Sample:
    """Counted when the pool is at its target and nobody holds a lease."""

    cycle: int
    processes: int
    descriptors: int
    threads: int
    workers: int
    """Threads that wait for blocking calls to make; they end when they have been idle for some seconds."""
    tasks: int
    files: int
    domains: int
    rss_kib: int
    """Resident memory without what malloc could give back."""
    heap_kib: int
    """Given out by malloc."""
    blocks: int
    """Given out by CPython's allocator."""
    free_kib: int = 0
    """What malloc gave back: free pieces, kept since the sample before this one. Told, not judged."""

    def as_row(self) -> dict[str, int]:
        return asdict(self)


async def take(cycle: int, template: Template) -> Sample:
    """Count everything of this process."""
    gc.collect()
    domains = await template.host.call(template.host.connection.domains)
    counted = await asyncio.to_thread(_count, template)
    workers = sum(thread.name.startswith(("AnyIO", "asyncio_")) for thread in threading.enumerate())
    return Sample(
        cycle=cycle,
        domains=len(domains),
        tasks=len(asyncio.all_tasks()),
        workers=workers,
        threads=threading.active_count() - workers,
        heap_kib=malloc_kib(),
        blocks=python_blocks(),
        **counted,
    )


def _count(template: Template) -> dict[str, int]:
    rundir = template.host.rundir.path
    mine = [machine for machine in find_machines(rundir.parent) if machine.run_directory == rundir.name]
    before = _resident_kib()
    trim()
    resident = _resident_kib()
    return {
        "processes": len(mine),
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "files": sum(1 for _ in rundir.rglob("*")),
        "rss_kib": resident,
        "free_kib": before - resident,
    }


def _resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def growth(samples: Sequence[Sample]) -> dict[str, int]:
    """Return by how much the least of the last third exceeds the least of the first; noise does not lift it."""
    early, late = _thirds(samples)
    names = [field.name for field in fields(Sample) if field.name != "cycle"]
    return {name: min(getattr(s, name) for s in late) - min(getattr(s, name) for s in early) for name in names}


def leaks(samples: Sequence[Sample]) -> list[str]:
    """Return one line for everything that has grown."""
    early, late = _thirds(samples)
    allowed = dict(ALLOWED)
    if late[-1].cycle - early[0].cycle >= MEMORY_CYCLES:
        allowed |= ALLOWED_MEMORY
    grown = growth(samples)
    return [f"{name} grew by {grown[name]}" for name in allowed if grown[name] > allowed[name]]


def _thirds(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Return the first and the last third, without what comes first of all: it warms up."""
    settled = samples[min(len(samples) - 1, len(samples) // 10 + 1) :]
    third = max(1, len(settled) // 3)
    return settled[:third], settled[-third:]
