"""Having pages at hand before a snapshot, so that no clone has to ask its kernel for them one by one."""

import ctypes

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_POPULATE_READ, _POPULATE_WRITE = 22, 23


def own():
    """Map all of this process's code, and give it its own copy of every page that it may write.

    Each page that two processes share costs a clone a fault later.
    """
    with open("/proc/self/maps") as file:
        lines = file.readlines()
    for line in lines:
        span, rights, _, _, inode, *name = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in span.split("-"))
        if rights == "rw-p" and name[:1] != ["[stack]\n"]:
            _libc.madvise(start, end - start, _POPULATE_WRITE)
        elif rights == "r-xp" and inode != "0":
            _libc.madvise(start, end - start, _POPULATE_READ)
