"""The file server: one process for each user that files are handled as."""

import ctypes
import os
import signal
import stat

import content
import packer
import unpacker
from content import describe
from control import Control

_LIST_ENTRIES = 500
_LIST_CHARACTERS = 100_000  # of names and targets in one message: the host takes 1 MiB, and one may need six bytes
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1
_libc = ctypes.CDLL(None, use_errno=True)


def serve():
    """Answer requests until the host closes the stream."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    control = Control()
    for request in control.requests():
        try:
            answer = _OPERATIONS[request["op"]](control, request)
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            answer = content.refusal(error)
        if answer is not None:  # else it was given already
            control.send_json(answer)
    return 0


def _stat(_control, request):
    follow = request.get("follow", True)
    found = describe(os.stat(request["path"], follow_symlinks=follow))
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
    entries, characters = [], 0
    with os.scandir(request["path"]) as found:
        for entry in found:
            try:
                described = describe(entry.stat(follow_symlinks=False), entry.name)
                if described["type"] == "symlink":
                    described["target"] = os.readlink(entry.path)
            except FileNotFoundError:  # removed meanwhile
                continue
            entries.append(described)
            characters += len(entry.name) + len(described.get("target", ""))
            if len(entries) == _LIST_ENTRIES or characters > _LIST_CHARACTERS:
                control.send_json({"entries": entries})
                entries, characters = [], 0
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
    path, target = request["path"], request["target"]
    if request.get("replace", True):
        os.rename(path, target)
    elif _libc.renameat2(_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
        content.refuse(ctypes.get_errno())
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


_OPERATIONS = {
    "read": content.read,
    "write": content.write,
    "stat": _stat,
    "exists": _exists,
    "list": _list,
    "remove": _remove,
    "move": _move,
    "mkdir": _mkdir,
    "chmod": _chmod,
    "pack": packer.pack,
    "unpack": unpacker.unpack,
}
