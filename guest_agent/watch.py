"""Watching a directory: what the kernel's inotify says, as messages."""

import ctypes
import os
import select
import signal
import struct

from control import ASK, Control

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("iIII")
_CREATE, _DELETE, _MODIFY, _CLOSE_WRITE = 0x100, 0x200, 0x2, 0x8
_MOVED_FROM, _MOVED_TO, _ATTRIB, _DELETE_SELF = 0x40, 0x80, 0x4, 0x400
_OVERFLOW, _IGNORED, _IS_DIRECTORY = 0x4000, 0x8000, 0x40000000
_ALL = _CREATE | _DELETE | _MODIFY | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _ATTRIB | _DELETE_SELF
_EVENTS_EACH = 500
_CHARACTERS_EACH = 100_000  # of paths in one message: the host takes 1 MiB, and a character may need six bytes
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
        for some in _portions(events):
            control.send_json({"events": some})


def _portions(events):
    some, characters = [], 0
    for event in events:
        some.append(event)
        characters += len(event["path"])
        if len(some) == _EVENTS_EACH or characters > _CHARACTERS_EACH:
            yield some
            some, characters = [], 0
    if some:
        yield some


_UNSEEN = (FileNotFoundError, NotADirectoryError, PermissionError)  # gone again, or not to be looked into


class _Watcher:
    """Knows each watched directory by the kernel's number for it, and where it lies below the top."""

    def __init__(self, top, recursive):
        self._fd = _libc.inotify_init1(os.O_CLOEXEC)
        if self._fd < 0:
            _refuse()
        self._top = top
        self._places = {}
        self._recursive = recursive
        self._watch("")
        if recursive and os.path.isdir(top):
            self._watch_below("")

    def _path(self, relative):
        return os.path.join(self._top, relative) if relative else self._top

    def _watch(self, relative):
        number = _libc.inotify_add_watch(self._fd, os.fsencode(self._path(relative)), _ALL)
        if number < 0:
            _refuse()
        self._places[number] = relative

    def _watch_below(self, relative):
        """Watch all directories below one; return what was found there. Who may not look into one is not told of it."""
        found, pending = [], [relative]
        while pending:
            above = pending.pop()
            try:
                with os.scandir(self._path(above)) as listing:
                    entries = list(listing)
            except _UNSEEN:
                continue
            for entry in entries:
                below = os.path.join(above, entry.name)
                is_directory = entry.is_dir(follow_symlinks=False)
                found.append(_event("created", below, is_directory))
                if is_directory and self._watch_if_there(below):
                    pending.append(below)
        return found

    def _watch_if_there(self, relative):
        try:
            self._watch(relative)
        except _UNSEEN:
            return False
        return True

    def _forget_below(self, relative):
        """What was moved away is not watched under its old name."""
        for number, place in list(self._places.items()):
            if place == relative or place.startswith(relative + os.sep):
                del self._places[number]
                _libc.inotify_rm_watch(self._fd, number)

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
            return [_event("overflow", "", False)]
        if mask & _IGNORED or number not in self._places:
            self._places.pop(number, None)
            return []
        relative = self._places[number]
        if mask & _DELETE_SELF and relative:  # its parent reports it too
            return []
        where = os.path.join(relative, name) if name else relative
        is_directory = bool(mask & _IS_DIRECTORY)
        kind = next((said for bit, said in _NAMES.items() if mask & bit), None)
        events = [_event(kind, where, is_directory)] if kind else []
        if is_directory and self._recursive and name:
            events += self._follow(mask, where)
        return events

    def _follow(self, mask, where):
        """Watch a directory that has come, with what came into it before; let one go that was moved away."""
        if mask & _MOVED_FROM:
            self._forget_below(where)
        if not mask & (_CREATE | _MOVED_TO):
            return []
        try:
            return self._watch_below(where) if self._watch_if_there(where) else []
        except OSError:  # there are as many watches as the kernel allows: from now on changes are missed
            return [_event("overflow", where, True)]


def _event(kind, where, is_directory):
    return {"type": kind, "path": where, "is_directory": is_directory}


def _refuse():
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
