"""Names and links that a guest gives for what is in its tree: which of them stay inside."""

from __future__ import annotations

import errno
import os

from sandbox.errors import HostFileError

MOST_DEPTH = 64
NAME_BYTES = 255
"""The longest name of a file on Linux."""
PATH_BYTES = 4095
"""The longest target of a link."""


def why_not_linked(depth: int, target: str) -> str:
    """Return why a link in a directory so many levels below the top is not made; nothing if it is.

    A link may go up only at its beginning, and not beyond the top. Its own directory is no link, so that leads into
    the tree. From there it only goes down, and each link that it meets is one of these. So no chain of them leaves.
    """
    try:
        length = len(os.fsencode(target))
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= PATH_BYTES or "\0" in target:
        return "it is a link to what no path can be"
    said = f"it is a link to {target[:200]!r}"
    if target.startswith("/"):
        return f"{said}, an absolute path"
    ups, is_down = 0, False
    for part in target.split("/"):
        if part == "..":
            if is_down:
                return f"{said}, which goes up again on its way"
            ups += 1
        elif part not in ("", "."):
            is_down = True
    return f"{said}, outside of the tree" if ups > depth else ""


def components(name: str) -> list[str]:
    """Split a relative name from the guest; raise `HostFileError` unless each part is an ordinary name."""
    if name.count("/") >= MOST_DEPTH:
        raise HostFileError(errno.ENAMETOOLONG, f"the guest's directory is more than {MOST_DEPTH} levels deep")
    parts = name.split("/")
    if not all(_is_ordinary(part) for part in parts):
        raise HostFileError(
            errno.EINVAL, f"the guest named a file {name[:200]!r}, which is no name within the directory"
        )
    return parts


def _is_ordinary(part: str) -> bool:
    if part in ("", ".", "..") or "\0" in part or len(part) > NAME_BYTES:
        return False
    try:
        return len(os.fsencode(part)) <= NAME_BYTES
    except UnicodeEncodeError:  # no bytes of a name are decoded to this
        return False
