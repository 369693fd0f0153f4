"""What is in files, as messages: read and written."""

import errno
import os
import stat

from message import DATA_BYTES, Tag

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
_UNBOUNDED = 1 << 62
_LOST_BY_WRITING = stat.S_ISUID | stat.S_ISGID


def type_of(status):
    """Return the word for a file's type."""
    return _TYPES.get(stat.S_IFMT(status.st_mode), "other")


def describe(status, name=None):
    """Return the fields that tell of a file."""
    described = {
        "type": type_of(status),
        "size": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "mtime": status.st_mtime,
        "uid": status.st_uid,
        "gid": status.st_gid,
    }
    if name is not None:
        described["name"] = name
    return described


def refuse(number):
    """Raise the error of this number."""
    raise OSError(number, os.strerror(number))


def refusal(error):
    """Return the answer that says why something was not done."""
    if isinstance(error, OSError):
        return {"errno": error.errno or errno.EIO, "text": error.strerror or str(error)}
    if isinstance(error, RecursionError):
        return {"errno": errno.ENAMETOOLONG, "text": "the directories are nested too deep"}
    return {"errno": errno.EINVAL, "text": str(error)}


def _open_regular(path, flags, mode=0o644):
    """Open a regular file. What is none (a FIFO, a device) could block or never end: it is refused."""
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a FIFO that nobody reads, a socket, a device without a driver
            _refuse_special(os.stat(path).st_mode)
        raise
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind):
        return fd
    os.close(fd)
    return _refuse_special(kind)


def _refuse_special(mode):
    if stat.S_ISDIR(mode):
        refuse(errno.EISDIR)
    raise OSError(errno.EINVAL, f"it is a {_TYPES.get(stat.S_IFMT(mode), 'special file')}, not a regular file")


def _send(control, fd, limit=_UNBOUNDED):
    while limit > 0 and (data := os.read(fd, min(DATA_BYTES, limit))):
        control.send(Tag.DATA, data)
        limit -= len(data)
    control.send(Tag.END)


def read(control, request):
    fd = _open_regular(request["path"], os.O_RDONLY)
    try:
        os.lseek(fd, request.get("offset", 0), os.SEEK_SET)
        control.send_json({"stat": describe(os.fstat(fd))})
        _send(control, fd, request.get("limit", _UNBOUNDED))
    finally:
        os.close(fd)
    return {}


def write(control, request):
    """The content follows the request. A refusal is told at once; the content is then taken to its end, unwritten."""
    fd, mode = None, request.get("mode")
    try:
        fd = _open_to_write(request, mode)
        while control.receive_into(fd):
            pass
        if mode is not None and mode & _LOST_BY_WRITING:
            os.fchmod(fd, mode)
        return {"stat": describe(os.fstat(fd))}
    except (OSError, ValueError) as error:
        control.send_json(refusal(error))
        while control.receive()[0] is not Tag.END:
            pass
        return None
    finally:
        if fd is not None:
            os.close(fd)


def _open_to_write(request, mode):
    if request.get("parents"):
        try:
            os.makedirs(os.path.dirname(request["path"]) or ".", exist_ok=True)
        except FileExistsError:
            refuse(errno.ENOTDIR)
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if request.get("append") else 0)
    flags |= os.O_EXCL if request.get("exclusive") else 0
    fd = _open_regular(request["path"], flags, 0o644 if mode is None else mode)
    try:
        if not request.get("append"):
            os.ftruncate(fd, 0)
        if mode is not None:
            os.fchmod(fd, mode)
    except OSError:
        os.close(fd)
        raise
    return fd
