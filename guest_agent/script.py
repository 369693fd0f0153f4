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
    """One script's file. It stays as long as anything of its program runs, and then goes, unless it was changed."""

    def __init__(self, path, is_made, aside=""):
        self.path = path
        self.is_made = is_made
        """False if its user has put it there before."""
        self.aside = aside
        """The directory that was made for it, if it has one of its own."""

    def remove(self, acting, data):
        """Remove what was made for it, of this content; `acting` gives the rights of its user."""
        try:
            with acting:
                if self.is_made and _has(self.path, data):
                    os.unlink(self.path)
                if self.aside:
                    os.rmdir(self.aside)
        except OSError:  # the program has removed it, or put something else there
            pass


def place(directory, name, data):
    """Write a script, with the rights of its user; return its `Script`. Raises `OSError` with the file's name."""
    try:
        return _write(directory, name, data)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
    aside = _make_aside()
    return _write(aside, name, data, aside)


def _write(directory, name, data, aside=""):
    path = f"{directory}/{name}"
    for number in range(1, _MOST_NAMES):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            if number == 1 and _has(path, data):
                return Script(path, False, aside)
            stem, dot, suffix = name.rpartition(".") if "." in name[1:] else (name, "", "")
            path = f"{directory}/{stem}-{number}{dot}{suffix}"
            continue
        try:
            written = os.write(fd, data)
            while written < len(data):
                written += os.write(fd, data[written:])
            return Script(path, True, aside)
        except OSError as error:
            os.unlink(path)
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(fd)
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def _has(path, data):
    """Return whether there is a file of this content."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
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


def _make_aside():
    for number in range(_MOST_NAMES):
        path = f"{ASIDE}/{os.getpid()}-{number}"
        try:
            os.mkdir(path, mode=0o700)
        except FileExistsError:
            continue
        return path
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), ASIDE)
