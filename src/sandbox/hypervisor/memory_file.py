"""The file behind a guest's memory."""

from __future__ import annotations

import os

from sandbox.errors import HostResources
from sandbox.proc import mounts


def allocate(descriptor: int, size: int) -> None:
    """Give an empty file its size; raise `HostResources` when there is no room for it.

    On a file system in memory every page is taken now. QEMU could not be told of a page that cannot be had later: the
    kernel would kill it with SIGBUS, even for reading a hole. On a disk the file keeps its holes.
    """
    try:
        if _is_in_memory(descriptor):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.truncate(descriptor, size)
    except OSError as error:
        raise HostResources(
            f"a guest's memory file needs {size >> 20} MiB and cannot have them: {error.strerror}; "
            "use less --memory, or set SANDBOX_DATA_DIR to a larger file system"
        ) from error


def _is_in_memory(descriptor: int) -> bool:
    device = os.fstat(descriptor).st_dev
    return next((mount.kind in ("tmpfs", "ramfs") for mount in mounts() if mount.device == device), False)
