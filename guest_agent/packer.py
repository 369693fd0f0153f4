"""A whole tree as messages. Small files travel in batches, one message for all their contents; large ones alone."""

import errno
import os
import stat

import content
from message import DATA_BYTES, Tag
from tree import DIRECTORY, failure, open_below

_SMALL = 32 * 1024
_ENTRIES = 500
_CHARACTERS = 256 * 1024
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def pack(control, request):
    """Send a tree: each directory before what is in it. What cannot be read is named, and the rest is sent."""
    packer = _Packer(control, request["path"])
    try:
        packer.send_all()
    finally:
        os.close(packer.top)
    return {"done": True}


class _Packer:
    """Collects small entries until they are worth a message."""

    def __init__(self, control, path):
        self.top = os.open(path, DIRECTORY)
        self._control = control
        self._entries, self._errors, self._content = [], [], []
        self._size = self._characters = 0

    def send_all(self):
        pending = [""]
        while pending:
            relative = pending.pop()
            try:
                fd = open_below(self.top, relative)
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError as error:
                self._fail(relative, error)
                continue
            try:
                with os.scandir(fd) as found:
                    prefix = relative and relative + "/"
                    for entry in found:
                        self._pack(fd, entry, prefix + entry.name, pending)
            finally:
                os.close(fd)
        self._flush()

    def _pack(self, fd, entry, name, pending):
        try:
            if entry.is_file(follow_symlinks=False):
                large = self._pack_file(fd, entry.name, name)
            else:
                large = None
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    self._add(name, status, target=os.readlink(entry.name, dir_fd=fd))
                else:
                    self._add(name, status)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(name)
        except FileNotFoundError:  # removed meanwhile
            return
        except OSError as error:
            self._fail(name, error)
            return
        if large is not None:
            try:
                self._send_large(large, name)
            finally:
                os.close(large)

    def _pack_file(self, directory, short, name):
        """Add a small file; return the descriptor of one that is to be sent on its own."""
        fd = os.open(short, _READ, dir_fd=directory)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file any more")
            if status.st_size <= _SMALL:
                data = os.read(fd, status.st_size + 1)
                if len(data) <= status.st_size:
                    self._add(name, status, data)
                    return None
                os.lseek(fd, 0, os.SEEK_SET)  # it grows, or is one of the kernel's, which have no size
            large, fd = fd, None
            return large
        finally:
            if fd is not None:
                os.close(fd)

    def _send_large(self, fd, name):
        self._flush()
        self._control.send_json({"entry": _entry(name, os.fstat(fd))})
        why = None
        while True:
            try:
                data = os.read(fd, DATA_BYTES)
            except OSError as error:
                why = failure(name, error)
                break
            if not data:
                break
            self._control.send(Tag.DATA, data)
        self._control.send(Tag.END)
        self._control.send_json({"error": why})

    def _add(self, name, status, data=b"", target=None):
        if self._size + len(data) > DATA_BYTES:
            self._flush()
        entry = _entry(name, status)
        if target is not None:
            entry["target"] = target
            self._characters += len(target)
        if stat.S_ISREG(status.st_mode):
            entry["size"] = len(data)
            self._content.append(data)
            self._size += len(data)
        self._entries.append(entry)
        self._count(name)

    def _fail(self, name, error):
        self._errors.append(failure(name, error))
        self._count(name)

    def _count(self, name):
        self._characters += len(name)
        if len(self._entries) + len(self._errors) >= _ENTRIES or self._characters >= _CHARACTERS:
            self._flush()

    def _flush(self):
        if self._entries or self._errors:
            self._control.send_json({"entries": self._entries, "errors": self._errors})
            if self._size:
                self._control.send(Tag.DATA, b"".join(self._content))
            self._entries, self._errors, self._content = [], [], []
            self._size = self._characters = 0


def _entry(name, status):
    return {
        "type": content.type_of(status),
        "name": name,
        "mode": stat.S_IMODE(status.st_mode),
        "mtime": status.st_mtime_ns,
        "size": status.st_size,
    }
