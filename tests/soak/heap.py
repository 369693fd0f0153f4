"""What of this process's memory is in use, as the allocators count it: pieces that they keep for later are not."""

from __future__ import annotations

import ctypes
import sys

_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
_MANY_STRINGS = 60_000


class _MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


_libc = ctypes.CDLL(None)
_mallinfo2 = _libc.mallinfo2  # glibc 2.33
_mallinfo2.restype = _MallInfo


def grow_tables() -> None:
    """Have CPython's table of interned strings grow now, once for all, by what would look like a leak of a MiB later.

    `pathlib` interns each part of a path, and names of VMs are new in each cycle. Strings that are gone leave a mark in
    the table, which is made anew, twice as large, when it is full of marks: after some 20,000 of them. From then on it
    stays, however many come, as `tests/proofs/test_soak.py` shows.
    """
    for number in range(_MANY_STRINGS):
        sys.intern(f"gone-{number}")


def malloc_kib() -> int:
    """Return what malloc has given out in all its arenas and not got back, libvirt's and CPython's large blocks too."""
    info = _mallinfo2()
    return int(info.uordblks + info.hblkhd) // 1024


def trim() -> None:
    """Have malloc give back every free page of all its arenas, not only those at the end of the heap."""
    _libc.malloc_trim(0)


def python_blocks() -> int:
    """Return how many blocks CPython's own allocator has given out: about one for each small object."""
    return sys.getallocatedblocks()
