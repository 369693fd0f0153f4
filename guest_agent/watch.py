"""Watching a directory: what the kernel's inotify says, as messages."""

import ctypes
import os
import select
import signal
import stat
import struct

from control import ASK, Control

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("iIII")
_CREATE, _DELETE, _MODIFY, _CLOSE_WRITE = 0x100, 0x200, 0x2, 0x8
_MOVED_FROM, _MOVED_TO, _ATTRIB, _DELETE_SELF = 0x40, 0x80, 0x4, 0x400
_OVERFLOW, _IGNORED, _IS_DIRECTORY = 0x4000, 0x8000, 0x40000000
_ALL = _CREATE | _DELETE | _MODIFY | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _ATTRIB | _DELETE_SELF
_NAMES = {
    _CREATE: "created",
    _MOVED_TO: "created",
    _DELETE: "removed",
    _MOVED_FROM: "removed",
    _DELETE_SELF: "removed",
    _MODIFY: "modified",
    _CLOSE_WRITE: "written",
    _ATTRIB: "attributes",
}


def serve():
    """Take one request, confirm it, and report until the host closes the stream."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    control = Control()
    request = next(control.requests(), None)
    if request is None:
        return 0
    try:
        watcher = _Watcher(request["path"], bool(request.get("recursive")))
    except OSError as error:
        control.send_json({"errno": error.errno, "text": error.strerror})
        return 1
    control.send_json({})
    while True:
        events = watcher.wait()
        if events is None:
            return 0
        if events:
            control.send_json({"events": events})


class _Watcher:
    def __init__(self, top, recursive):
        self._fd = _libc.inotify_init1(os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._paths = {}
        self._recursive = recursive
        self._add(top, "")

    def _add(self, path, relative):
        number = _libc.inotify_add_watch(self._fd, os.fsencode(path), _ALL)
        if number < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._paths[number] = (path, relative)
        if self._recursive and stat.S_ISDIR(os.lstat(path).st_mode):
            for entry in os.scandir(path):
                if entry.is_dir(follow_symlinks=False):
                    self._add_quietly(entry.path, os.path.join(relative, entry.name))

    def _add_quietly(self, path, relative):
        try:
            self._add(path, relative)
        except OSError:  # it is gone again
            pass

    def wait(self):
        """Return the next events; None when the host is gone."""
        ready, _, _ = select.select([self._fd, ASK], [], [])
        if ASK in ready and not os.read(ASK, 4096):
            return None
        if self._fd not in ready:
            return []
        data, events, offset = os.read(self._fd, 64 * 1024), [], 0
        while offset < len(data):
            number, mask, _cookie, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
            offset += length
            events += self._translate(number, mask, name)
        return events

    def _translate(self, number, mask, name):
        if mask & _OVERFLOW:
            return [{"type": "overflow", "path": "", "is_directory": False}]
        if mask & _IGNORED or number not in self._paths:
            self._paths.pop(number, None)
            return []
        path, relative = self._paths[number]
        is_directory = bool(mask & _IS_DIRECTORY)
        if is_directory and self._recursive and mask & (_CREATE | _MOVED_TO):
            self._add_quietly(os.path.join(path, name), os.path.join(relative, name))
        if mask & _DELETE_SELF and relative:  # its parent reports it too
            return []
        kind = next((said for bit, said in _NAMES.items() if mask & bit), None)
        where = os.path.join(relative, name) if name else relative
        return [{"type": kind, "path": where, "is_directory": is_directory}] if kind else []
