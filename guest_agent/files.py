"""The file server: one process for each user that files are handled as."""

import errno
import os
import signal
import stat

from control import Control
from message import DATA_BYTES, Tag

_LIST_ENTRIES = 500
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def serve():
    """Answer requests until the host closes the stream."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    control = Control()
    for request in control.requests():
        try:
            answer = _OPERATIONS[request["op"]](control, request)
        except OSError as error:
            answer = {"errno": error.errno or errno.EIO, "text": error.strerror or str(error)}
        except (ValueError, UnicodeError) as error:
            answer = {"errno": errno.EINVAL, "text": str(error)}
        control.send_json(answer)
    return 0


def _describe(status, name=None):
    described = {
        "type": _TYPES.get(stat.S_IFMT(status.st_mode), "other"),
        "size": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "mtime": status.st_mtime,
        "uid": status.st_uid,
        "gid": status.st_gid,
    }
    if name is not None:
        described["name"] = name
    return described


def _open_regular(path, flags, mode=0o644):
    """Open a regular file. What is none (a FIFO, a device) could block or never end: it is refused."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind == stat.S_IFREG:
        return fd
    os.close(fd)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, f"it is a {_TYPES.get(kind, 'special file')}, not a regular file")


def _send_content(control, fd, offset, limit):
    os.lseek(fd, offset, os.SEEK_SET)
    while limit > 0 and (data := os.read(fd, min(DATA_BYTES, limit))):
        control.send(Tag.DATA, data)
        limit -= len(data)
    control.send(Tag.END)


def _read(control, request):
    fd = _open_regular(request["path"], os.O_RDONLY)
    try:
        control.send_json({"stat": _describe(os.fstat(fd))})
        _send_content(control, fd, request.get("offset", 0), request.get("limit", 1 << 62))
    finally:
        os.close(fd)
    return {}


def _write(control, request):
    """The content follows the request. It is taken to its end even if the file cannot be written."""
    failure = fd = None
    try:
        if request.get("parents"):
            os.makedirs(os.path.dirname(request["path"]) or ".", exist_ok=True)
        mode = request.get("mode")
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if request.get("append") else 0)
        flags |= os.O_EXCL if request.get("exclusive") else 0
        fd = _open_regular(request["path"], flags, 0o644 if mode is None else mode)
        if not request.get("append"):
            os.ftruncate(fd, 0)
        if mode is not None:
            os.fchmod(fd, mode)
    except (OSError, ValueError) as error:
        failure = error
    try:
        failure = _take_content(control, fd, failure)
        if failure is not None:
            raise failure
        return {"stat": _describe(os.fstat(fd))}
    finally:
        if fd is not None:
            os.close(fd)


def _take_content(control, fd, failure):
    while failure is None:
        try:
            if not control.receive_into(fd):
                return None
        except OSError as error:
            failure = error
    while control.receive()[0] is not Tag.END:
        pass
    return failure


def _stat(_control, request):
    follow = request.get("follow", True)
    found = _describe(os.stat(request["path"], follow_symlinks=follow))
    if found["type"] == "symlink":
        found["target"] = os.readlink(request["path"])
    return {"stat": found}


def _exists(_control, request):
    try:
        os.stat(request["path"])
    except (FileNotFoundError, NotADirectoryError):
        return {"exists": False}
    return {"exists": True}


def _list(control, request):
    entries = []
    with os.scandir(request["path"]) as found:
        for entry in found:
            try:
                entries.append(_describe(entry.stat(follow_symlinks=False), entry.name))
            except FileNotFoundError:  # removed meanwhile
                continue
            if len(entries) == _LIST_ENTRIES:
                control.send_json({"entries": entries})
                entries = []
    control.send_json({"entries": entries})
    return {}


def _remove(_control, request):
    path = request["path"]
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
    elif request.get("recursive"):
        import shutil  # noqa: PLC0415 - most never need it

        shutil.rmtree(path)
    else:
        os.rmdir(path)
    return {}


def _move(_control, request):
    if not request.get("replace", True) and os.path.lexists(request["target"]):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.rename(request["path"], request["target"])
    return {}


def _mkdir(_control, request):
    mode = request.get("mode")
    if request.get("parents"):
        os.makedirs(request["path"], exist_ok=True)
    else:
        os.mkdir(request["path"])
    if mode is not None:
        os.chmod(request["path"], mode)
    return {}


def _chmod(_control, request):
    os.chmod(request["path"], request["mode"])
    return {}


def _pack(control, request):
    """Send a tree: a description of each entry, the content of each file after its description."""
    top = request["path"]
    if not os.path.isdir(top):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    pending = [""]
    while pending:
        relative = pending.pop()
        with os.scandir(os.path.join(top, relative)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = os.path.join(relative, entry.name)
            described = _describe(entry.stat(follow_symlinks=False), name)
            if described["type"] == "symlink":
                described["target"] = os.readlink(entry.path)
            if described["type"] != "file":
                control.send_json({"entry": described})
                if described["type"] == "directory":
                    pending.append(name)
                continue
            fd = _open_regular(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                control.send_json({"entry": described})
                _send_content(control, fd, 0, 1 << 62)
            finally:
                os.close(fd)
    return {"done": True}


_OPERATIONS = {
    "read": _read,
    "write": _write,
    "stat": _stat,
    "exists": _exists,
    "list": _list,
    "remove": _remove,
    "move": _move,
    "mkdir": _mkdir,
    "chmod": _chmod,
    "pack": _pack,
}
