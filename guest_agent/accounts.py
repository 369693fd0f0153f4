"""Accounts by name, remembered while the files that define them stay as they are; and acting with their rights."""

import grp
import os
import pwd

FILES = ("/etc/passwd", "/etc/group")
DEFAULT = "user"
WORKSPACE = "/workspace"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

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


def environment(account, *, has_terminal=False):
    """Return the variables that every program of this user starts with."""
    return {
        "PATH": _PATH if account.pw_uid == 0 else f"{account.pw_dir}/.local/bin:{_PATH}",
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "SHELL": account.pw_shell,
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color" if has_terminal else "dumb",
        "PYTHONUNBUFFERED": "1",
    }


class Acting:
    """A `with` in which this process has the rights of an account, and nothing more.

    For process 1 only: the kernel lets no signal of that user reach it. What it executes there starts with these
    rights for good, because a new program cannot return to the saved user id that we keep.
    """

    def __init__(self, account, groups):
        self._account = account
        self._groups = groups

    def __enter__(self):
        account = self._account
        if account.pw_uid == 0:
            return
        try:
            os.setgroups(self._groups)
            os.setresgid(account.pw_gid, account.pw_gid, 0)
            os.setresuid(account.pw_uid, account.pw_uid, 0)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_error):
        if self._account.pw_uid:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
            os.setgroups([])
