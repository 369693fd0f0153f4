"""The digest of a file with holes, taken by several processors at once: it is in the way of every first restore."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

Identity = tuple[int, int, int, int, int]
_BLOCK = 64 * 1024
_CHUNK = 64 * _BLOCK
_ZEROS = bytes(_BLOCK)
_THREADS = 8
_SETTLED_NS = 100_000_000
"""A file that was changed less than this before it was read may change again without another time stamp."""
_KNOWN = 256
_known: dict[Identity, str] = {}
_knowing = threading.Lock()


def identity(path: Path) -> Identity:
    """Return what changes when a file is changed or exchanged, as far as `stat` tells. Raises `OSError`."""
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest_once(path: Path, *, is_final: bool = False) -> str:
    """Return `digest_sparse` of a file, which this process reads once as long as its `identity` stays. Blocks.

    `is_final` says that nobody writes to it any more. Another process reads it anew: what happens to the content on a
    disk shows in no time stamp.
    """
    before, now = identity(path), time.time_ns()
    with _knowing:
        if (known := _known.get(before)) is not None:
            return known
    found = digest_sparse(path)
    if identity(path) == before and (is_final or now - max(before[3:]) > _SETTLED_NS):
        with _knowing:
            while len(_known) >= _KNOWN:
                del _known[next(iter(_known))]
            _known[before] = found
    return found


def digest_sparse(path: Path) -> str:
    """Return the SHA-256 over a file's size and its chunks' digests, which leave out blocks of zeros. Blocks.

    It follows from what the file reads as, and from nothing else: a hole and zeros on the disk are equal, as are copies
    with other holes. Holes cost nothing.
    """
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        starts = range(0, size, _CHUNK)
        digest = hashlib.sha256(size.to_bytes(8, "big"))
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
            for found in threads.map(partial(_digest, descriptor), starts):
                digest.update(found)
    return digest.hexdigest()


def _digest(descriptor: int, start: int) -> bytes:
    """Return the digest of a chunk: of the places and the content of its blocks that hold anything but zeros."""
    digest = hashlib.sha256()
    for offset in _blocks(descriptor, start):
        data = os.pread(descriptor, _BLOCK, offset)  # less at the end, and where the file was cut meanwhile
        if data != _ZEROS[: len(data)]:
            digest.update(offset.to_bytes(8, "big"))
            digest.update(data)
    return digest.digest()


def _blocks(descriptor: int, offset: int) -> Iterator[int]:
    """Yield where the blocks of a chunk begin that are not holes as a whole."""
    end = offset + _CHUNK
    while offset < end:
        try:
            data = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # no data behind this offset
        offset = data - data % _BLOCK
        if offset < end:
            yield offset
        offset += _BLOCK
