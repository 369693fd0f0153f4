"""A tree made of messages; see `packer`."""

import errno
import os
import stat

import content
import message
from message import Tag
from tree import DIRECTORY, failure, open_below

_MOST_ERRORS = 1000
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What fails for these reasons fails for every further entry, too."""


class _EntryError(Exception):
    """One entry ends the whole. Its argument is the refusal, with that entry's name."""


def unpack(control, request):
    """Make a tree of what follows. A refusal is told at once; what still comes is then taken to its end, unwritten."""
    path, unpacker, mask = request["path"].rstrip("/") or "/", None, os.umask(0o022)
    try:
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        except FileExistsError:
            content.refuse(errno.ENOTDIR)
        os.umask(0)  # modes are as the host says
        unpacker = _Unpacker(path, request)
        while "done" not in (fields := message.decode_json(control.receive()[1])):
            unpacker.take(control, fields)
        return unpacker.report()
    except (OSError, ValueError, _EntryError) as error:
        control.send_json(error.args[0] if isinstance(error, _EntryError) else content.refusal(error))
        while True:
            tag, body = control.receive()
            if tag is Tag.JSON and "done" in message.decode_json(body):
                return None
    finally:
        os.umask(mask)
        if unpacker is not None:
            unpacker.close()


class _Unpacker:
    """Makes what the host says below one directory."""

    def __init__(self, path, request):
        self._replaces = request.get("overwrite", False)
        self._is_strict = request.get("strict", False)
        try:
            os.mkdir(path, request["mode"])
        except FileExistsError:
            if not self._replaces:
                raise
        self._top = os.open(path, DIRECTORY)
        self._parent, self._directory = self._top, ""
        self._counts = {"files": 0, "directories": 0, "links": 0, "bytes": 0}
        self._errors = []

    def close(self):
        self._leave()
        os.close(self._top)

    def report(self):
        return {**self._counts, "errors": self._errors}

    def take(self, control, fields):
        """Take one message with what belongs to it."""
        if "entry" in fields:
            self._take_large(control, fields["entry"])
            return
        entries = fields["entries"]
        size = sum(entry["size"] for entry in entries if entry["type"] == "file")
        data, start = memoryview(control.receive()[1] if size else b""), 0
        for entry in entries:
            kind = entry["type"]
            end = start + (entry["size"] if kind == "file" else 0)
            try:
                if kind == "file":
                    self._make_file(entry, data[start:end])
                elif kind == "directory":
                    self._make_directory(entry)
                else:
                    self._make_link(entry)
            except OSError as error:
                self._fail(entry["name"], error)
            start = end

    def _make_file(self, entry, data):
        fd = self._open(entry)
        try:
            while data:
                data = data[os.write(fd, data) :]
            self._finish(fd, entry, entry["size"])
        finally:
            os.close(fd)

    def _take_large(self, control, entry):
        try:
            fd = self._open(entry)
        except OSError as error:
            self._fail(entry["name"], error)
            _skip_content(control)
            return
        has_more, is_whole = True, False
        try:
            while has_more:
                has_more = control.receive_into(fd)
            if _is_whole(control):
                self._finish(fd, entry, os.fstat(fd).st_size)
                is_whole = True
        except OSError as error:
            self._fail(entry["name"], error)
            if has_more:
                _skip_content(control)
        finally:
            os.close(fd)
            if not is_whole:
                os.unlink(self._enter(entry["name"]), dir_fd=self._parent)

    def _open(self, entry):
        short = self._enter(entry["name"])
        return self._make(lambda: os.open(short, _MAKE, entry["mode"], dir_fd=self._parent), short)

    def _finish(self, fd, entry, size):
        os.utime(fd, ns=(entry["mtime"], entry["mtime"]))
        self._counts["files"] += 1
        self._counts["bytes"] += size

    def _make_link(self, entry):
        short = self._enter(entry["name"])
        self._make(lambda: os.symlink(entry["target"], short, dir_fd=self._parent), short)
        self._counts["links"] += 1

    def _make_directory(self, entry):
        short = self._enter(entry["name"])
        try:
            os.mkdir(short, entry["mode"], dir_fd=self._parent)
        except FileExistsError:
            found = os.stat(short, dir_fd=self._parent, follow_symlinks=False)
            if not self._replaces or not stat.S_ISDIR(found.st_mode):
                raise
        self._counts["directories"] += 1

    def _make(self, make, short):
        """Make a file or link; what was there goes first, if it is one of them and the caller wants that."""
        try:
            return make()
        except FileExistsError:
            found = os.stat(short, dir_fd=self._parent, follow_symlinks=False).st_mode
            if not self._replaces or not (stat.S_ISREG(found) or stat.S_ISLNK(found)):
                raise
        os.unlink(short, dir_fd=self._parent)
        return make()

    def _enter(self, name):
        """Make `_parent` the directory that `name` is in; return the name's last part."""
        directory, _, short = name.rpartition("/")
        if directory != self._directory:
            self._leave()
            self._parent = open_below(self._top, directory)
            self._directory = directory
        return short

    def _leave(self):
        parent, self._parent, self._directory = self._parent, self._top, ""
        if parent != self._top:
            os.close(parent)

    def _fail(self, name, error):
        if self._is_strict or error.errno in _HOPELESS or len(self._errors) == _MOST_ERRORS:
            raise _EntryError(failure(name, error)) from None
        self._errors.append(failure(name, error))


def _skip_content(control):
    while control.receive()[0] is not Tag.END:
        pass
    _is_whole(control)


def _is_whole(control):
    """Return whether the host could read the file to its end."""
    return message.decode_json(control.receive()[1])["error"] is None
