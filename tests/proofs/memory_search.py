"""Search a process from outside: of a VM's QEMU, its guest's memory and whatever QEMU keeps of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from mmap import PAGESIZE
from pathlib import Path

_CHUNK = 1 << 20
"""Little enough that whoever searches in a thread does not keep the interpreter's lock for long."""
_ENTRY_BYTES = 8
_THERE = re.compile(rb"[\x40-\xff]+")
"""The highest byte of an entry of /proc/PID/pagemap: bit 63 for present, 62 for swapped out."""


@dataclass
class Search:
    """Where something was found, and how much was searched: a search of nothing finds nothing."""

    found: list[str] = field(default_factory=list)
    searched_bytes: int = 0


def search_memory(pid: int, wanted: Sequence[bytes]) -> Search:
    """Look for these strings on every page of a writable mapping that the process has touched.

    The other pages of its guest's memory are those of the template's file, which is searched once for all VMs.
    """
    search = Search()
    root = Path(f"/proc/{pid}")
    with (root / "maps").open() as maps, (root / "mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, permissions, _, _, _, *name = line.split(maxsplit=5)
            if not permissions.startswith("rw"):
                continue
            start, end = (int(number, 16) for number in span.split("-"))
            for content in _contents(root, memory.fileno(), start, end, max(map(len, wanted)) - 1):
                search.searched_bytes += len(content)
                if any(content.find(one) >= 0 for one in wanted):
                    search.found.append(name[0].strip() if name else "anonymous")
    return search


def _contents(root: Path, memory: int, start: int, end: int, overlap: int) -> Iterator[bytes]:
    """Yield what is on the touched pages of a mapping, in pieces that overlap."""
    with (root / "pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(start // PAGESIZE * _ENTRY_BYTES)
        highest = pagemap.read((end - start) // PAGESIZE * _ENTRY_BYTES)[_ENTRY_BYTES - 1 :: _ENTRY_BYTES]
    for run in _THERE.finditer(highest):
        first, beyond = start + run.start() * PAGESIZE, start + run.end() * PAGESIZE
        for at in range(first, beyond, _CHUNK):
            try:
                yield os.pread(memory, min(_CHUNK + overlap, beyond - at), at)
            except OSError:  # it was unmapped meanwhile
                break
