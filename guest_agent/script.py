"""The files of scripts: each lies in the directory that its program starts in, as if its user had written it there.

So modules beside it can be imported, files beside it are found, and `__file__`, `sys.path[0]` and `$0` agree. Nothing
that is there is ever replaced, and nobody but the user may read it.
"""

import errno
import os
import stat

ASIDE = "/run/scripts"
"""Where scripts lie whose directory their user may not write: each in a directory of its own."""
_NO_PLACE = (errno.EACCES, errno.EROFS, errno.EPERM)
_MOST_NAMES = 1000


class Script:
    """One script's file. It stays as long as anything of its program runs, and then goes, unless it was replaced."""

    def __init__(self, account, path, status, aside=None):
        self.path = path
        self._account = account
        self._identity = status and (status.st_dev, status.st_ino)
        self._aside = aside

    def remove(self, acting):
        """Remove what was made for it; `acting` gives the rights of its user."""
        try:
            if self._identity is not None:
                with acting:
                    found = os.lstat(self.path)
                    if (found.st_dev, found.st_ino) == self._identity:
                        os.unlink(self.path)
            if self._aside is not None:
                os.rmdir(self._aside)
        except OSError:  # the program has removed it, or put something else there
            pass


def place(account, acting, directory, name, data):
    """Write a script for a user and return its `Script`. Raises `OSError` with the file's name."""
    try:
        with acting:
            return _write(account, directory, name, data)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
    aside = _make_aside(account)
    with acting:
        return _write(account, aside, name, data, aside)


def _write(account, directory, name, data, aside=None):
    stem, dot, suffix = name.rpartition(".") if "." in name[1:] else (name, "", "")
    path = os.path.join(directory, name)
    for number in range(1, _MOST_NAMES):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            if number == 1 and _is_same(path, data):
                return Script(account, path, None, aside)
            path = os.path.join(directory, f"{stem}-{number}{dot}{suffix}")
            continue
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            return Script(account, path, os.fstat(fd), aside)
        except OSError as error:
            os.unlink(path)
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(fd)
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def _is_same(path, data):
    """Return whether a file of this content is there already: the user has put it there, and it stays."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != len(data):
            return False
        found = b""
        while piece := os.read(fd, len(data) + 1):
            found += piece
        return found == data
    except OSError:
        return False
    finally:
        os.close(fd)


def _make_aside(account):
    for number in range(_MOST_NAMES):
        path = f"{ASIDE}/{number}"
        try:
            os.mkdir(path, mode=0o700)
        except FileExistsError:
            continue
        os.chown(path, account.pw_uid, account.pw_gid)
        return path
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), ASIDE)
