"""What of this process's memory is in use, as the allocators count it: pieces that they keep for later are not."""

from __future__ import annotations

import ctypes
import sys

_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


_mallinfo2 = ctypes.CDLL(None).mallinfo2  # glibc 2.33
_mallinfo2.restype = _MallInfo


def malloc_kib() -> int:
    """Return what malloc has given out in all its arenas and not got back, libvirt's and CPython's large blocks too."""
    info = _mallinfo2()
    return int(info.uordblks + info.hblkhd) // 1024


def python_blocks() -> int:
    """Return how many blocks CPython's own allocator has given out: about one for each small object."""
    return sys.getallocatedblocks()
