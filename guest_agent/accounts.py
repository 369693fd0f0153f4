"""Accounts by name, remembered while the files that define them stay as they are."""

import grp
import os
import pwd

FILES = ("/etc/passwd", "/etc/group")

_known = {}
_stamp = None


def find(name):
    """Return (account, supplementary groups); raise `LookupError` with a message for the user."""
    global _stamp  # noqa: PLW0603 - one process, one table
    stamp = [os.stat(path).st_mtime_ns for path in FILES]
    if stamp != _stamp:
        _known.clear()
        _stamp = stamp
    if name not in _known:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            raise LookupError(f"the guest has no user {name!r}") from None
        _known[name] = account, [group.gr_gid for group in grp.getgrall() if name in group.gr_mem]
    return _known[name]
