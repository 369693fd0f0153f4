"""Small files that this library keeps for later processes: read and written whole, whatever lies in their place.

A disk, a copy or a user may have changed any of them. What is read here is bytes from a regular file or an `OSError`
that names it; what was sealed is what was written or a `ValueError`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sandbox.paths import owner_of

MOST_BYTES = 64 * 1024 * 1024
_READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in a file's place must not hold us up
_SEAL = "sha256"


def read_stored(path: Path) -> bytes:
    """Return what a regular file of at most 64 MiB holds. Raises `OSError`, which names the file. Blocks."""
    descriptor = os.open(path, _READING)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a file", str(path))
        if status.st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, "Too large to be a file of ours", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MOST_BYTES)
    finally:
        os.close(descriptor)


def write_stored(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file as a whole, and bring it to the disk: a reader sees the old one or the new one. Blocks.

    Raises `OSError`, which names the file; then nothing has changed, and nothing is left beside it.
    """
    new = path.with_name(f".new-{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except BaseException as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def seal(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON with a digest of itself."""
    return json.dumps({**document, _SEAL: _digest(document)}, indent=1).encode() + b"\n"


def unseal(data: bytes) -> dict[str, Any]:
    """Return the document that was sealed. Raises `ValueError` when a single bit of its content differs."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    said = document.pop(_SEAL, None)
    if said != _digest(document):
        raise ValueError("it is not what was written, or of another version of sandbox")
    return document


def refused(error: OSError, directory: Path, variable: str = "SANDBOX_DATA_DIR") -> str:
    """Return why a directory of ours cannot be used, whose it is, and what to do."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else directory
    said = f"{path}: {error.strerror or error}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{said}; {owner_of(path)}: set {variable} to a directory of yours"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{said}: raise `ulimit -n`, or `sysctl fs.file-max`"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{said}: make room, or set {variable} to a directory elsewhere"
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ELOOP, errno.EEXIST):
        return f"{said}: remove what is there, or set {variable} to a directory elsewhere"
    return f"{said}: set {variable} to a directory of yours"


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
