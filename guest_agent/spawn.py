"""Commands: started by process 1 itself, without a copy of its memory, and with nothing but their own user's rights."""

import _signal
import errno
import os
import resource

from accounts import WORKSPACE, environment
from limits import OPEN_FILES, OPEN_FILES_USUAL

_STREAMS = (0, 1, 2, 3, 4)
_NO_ROOM = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOSPC)


def can(request):
    """Return whether a request can be served so: no terminal, and no limit that process 1 cannot have for a moment."""
    limits = request.get("limits") or {}
    return not request.get("pty") and not limits.keys() & {"cpu_seconds", "file_bytes", "open_files"}


def lacks_room(error):
    """Return whether an `OSError` says that the guest has no room for another process."""
    return error.errno in _NO_ROOM


def spawn(argv, request, streams, group, account, acting):
    """Start a command; return its process id. Raises `OSError`, with the name of what is missing as its file name."""
    variables = environment(account)
    variables.update(request.get("env") or {})
    directory = os.path.join(WORKSPACE, request.get("cwd") or "")
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in zip(_STREAMS, streams.theirs, strict=False)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES_USUAL, OPEN_FILES))
    try:
        with group, acting:
            os.chdir(directory)
            return _search(argv, variables, actions)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or argv[0]) from None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        os.chdir("/")


def _search(argv, variables, actions):
    """Execute the first file of that name on the path; raise the error that `execvp` would."""
    name = argv[0]
    if "/" in name:
        return _spawn(name, argv, variables, actions)
    failure = OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    for directory in variables.get("PATH", os.defpath).split(":"):
        path = f"{directory}/{name}" if directory else name
        if not os.path.exists(path):
            continue
        try:
            return _spawn(path, argv, variables, actions)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                failure = OSError(error.errno, error.strerror, name)
                if lacks_room(error):
                    break
    raise failure


def _spawn(path, argv, variables, actions):
    return os.posix_spawn(
        path,
        argv,
        variables,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=(_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT),
    )
