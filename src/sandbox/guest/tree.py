"""A guest's directory on this host. Nothing is ever opened here by a name that the guest chose alone: every component
is opened in its own directory, without following links. What exists is replaced only if the caller wants that."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.errors import HostFileError
from sandbox.guest.entry import TreeEntry
from sandbox.guest.hostfile import NewFile, check_replaceable, check_room, put_in_place, temporary_name
from sandbox.guest.treenames import components, why_not_linked
from sandbox.message import DATA_BYTES

MOST_BYTES = 1024 * 1024 * 1024
MOST_ENTRIES = 100_000
MOST_REPORTED_CHARACTERS = 4 * 1024 * 1024
"""Names and reasons of what was not copied are kept for the report; together they may have this many characters."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
HOPELESS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
)
"""What fails for these reasons fails for every further entry, too."""


@dataclass(frozen=True, slots=True)
class TreeReport:
    """What was copied, and what was not. `dataclasses.asdict` makes JSON of it.

    Hard links are copied as files of their own.
    """

    files: int
    directories: int
    """Without the top."""
    bytes: int
    links: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What is left out on purpose: its name in the tree, and why. Special files, and links as the call says."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """What should have been copied and could not be: its name in the tree, and why."""


class Omissions:
    """What is not copied, with the reasons, within a bound."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self._left = MOST_REPORTED_CHARACTERS

    def skip(self, name: str, why: str) -> None:
        self._count(name, why)
        self.skipped[name] = why

    def fail(self, name: str, why: str) -> None:
        self._count(name, why)
        self.errors[name] = why

    def _count(self, name: str, why: str) -> None:
        self._left -= len(name) + len(why)
        if self._left < 0:
            raise HostFileError(errno.EFBIG, "more of the directory cannot be copied than can be reported")


class TreeWriter:
    """Writes what a guest says below one directory, and nowhere else. Blocks: use it from a thread.

    Without `overwrite` the directory is a new one. With it, directories are merged, and regular files and links are
    replaced by what comes. What cannot be made, as when something else is in the way, goes to `omissions`; if `strict`,
    or when the host has no room, it is raised.
    """

    def __init__(
        self,
        target: Path,
        max_bytes: int,
        max_entries: int,
        *,
        overwrite: bool = False,
        keep_links: bool = True,
        strict: bool = False,
        mode: int = 0o700,
    ) -> None:
        self._overwrite = overwrite
        self._keep_links = keep_links
        self._is_strict = strict
        try:
            target.mkdir(mode=mode & 0o777 | 0o700, exist_ok=overwrite)
            self._top = os.open(target, _DIRECTORY)
        except OSError as error:
            advice = "name a directory that is no link" if overwrite else "name a new directory"
            raise HostFileError(error.errno, f"cannot make {target}: {error.strerror}; {advice}") from error
        self._parent, self._parts = self._top, list[str]()
        self._file: NewFile | None = None
        self._entry: TreeEntry | None = None
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self._left = max_bytes
        self._entries_left = max_entries
        self._files = self._directories = self._bytes = self._links = 0
        self.omissions = Omissions()

    def take(self, entries: Sequence[TreeEntry], content: bytes) -> None:
        """Make several entries. The files' contents, each as long as its entry says, are in `content`."""
        start, view = 0, memoryview(content)
        for entry in entries:
            self.begin(entry)
            if entry.type == "file":
                self.write(view[start : start + entry.size])
                self.end()
                start += entry.size

    def begin(self, entry: TreeEntry) -> None:
        """Make what `entry` names: a directory, a link, or a file that `write` fills until `end`."""
        self._count_entry()
        parts = components(entry.name)
        if entry.type == "symlink" and self._keep_links:
            why = why_not_linked(len(parts) - 1, entry.target)
        else:
            why = "" if entry.type in ("file", "directory") else f"it is a {entry.type}"
        if why:
            self.omissions.skip(entry.name, why)
            return
        if entry.type == "file":
            self._entry = entry
            if entry.size > self._left:
                raise self._too_large()
            if entry.size > DATA_BYTES:
                check_room(self._top, entry.size, entry.name)
        try:
            self._enter(parts[:-1])
            self._make(entry, parts[-1])
        except OSError as error:
            self._cannot_make(entry.name, error)

    def write(self, data: bytes | memoryview) -> None:
        """Add content to the file that was begun last."""
        self._left -= len(data)
        if self._left < 0:
            raise self._too_large()
        if self._file is None:  # it could not be made
            return
        try:
            self._file.write(data)
        except OSError as error:
            assert self._entry is not None
            raise HostFileError(error.errno, f"{self._entry.name!r} cannot be written: {error.strerror}") from error
        self._bytes += len(data)

    def end(self, failure: str | None = None) -> None:
        """Finish the file that was begun last. If the guest could not read it to its end, it is removed."""
        assert self._entry is not None
        if failure is not None:
            self.fail(self._entry.name, failure)
            self._abandon()
        elif self._file is not None:
            try:
                self._file.finish(self._entry.mtime)
            except OSError as error:
                self._abandon()
                self._cannot_make(self._entry.name, error)
            else:
                self._file = None
                self._files += 1

    def fail(self, name: str, why: str) -> None:
        """Note what the guest could not give. It counts as an entry."""
        self._count_entry()
        self.omissions.fail(name, why)

    def report(self) -> TreeReport:
        skipped, errors = self.omissions.skipped, self.omissions.errors
        return TreeReport(self._files, self._directories, self._bytes, self._links, skipped, errors)

    def close(self) -> None:
        """Remove a file that is not finished; close what is open."""
        try:
            self._abandon()
        finally:
            self._leave()
            if self._top >= 0:
                os.close(self._top)
            self._parent = self._top = -1

    def _make(self, entry: TreeEntry, name: str) -> None:
        if entry.type == "file":
            self._file = NewFile(self._parent, name, entry.mode, replace=self._overwrite)
        elif entry.type == "directory":
            self._make_directory(name, entry.mode & 0o777 | 0o700)
        else:
            self._make_link(name, entry.target)

    def _make_directory(self, name: str, mode: int) -> None:
        try:
            os.mkdir(name, mode, dir_fd=self._parent)
        except FileExistsError:
            if not self._overwrite:
                raise
            os.close(os.open(name, _DIRECTORY, dir_fd=self._parent))
        self._directories += 1

    def _make_link(self, name: str, target: str) -> None:
        if self._overwrite:
            check_replaceable(self._parent, name)
            temporary = temporary_name()
            os.symlink(target, temporary, dir_fd=self._parent)
            try:
                put_in_place(self._parent, temporary, name)
            except OSError:
                os.unlink(temporary, dir_fd=self._parent)
                raise
        else:
            os.symlink(target, name, dir_fd=self._parent)
        self._links += 1

    def _cannot_make(self, name: str, error: OSError) -> None:
        if self._is_strict or error.errno in HOPELESS:
            raise HostFileError(error.errno, f"{name!r} cannot be made: {error.strerror}") from error
        self.omissions.fail(name, error.strerror or str(error))

    def _enter(self, parts: list[str]) -> None:
        """Make `_parent` this directory; each step is one component that is no link."""
        if parts == self._parts:
            return
        self._leave()
        fd = os.open(".", _DIRECTORY, dir_fd=self._top)
        for part in parts:
            try:
                below = os.open(part, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        self._parent, self._parts = fd, parts

    def _leave(self) -> None:
        if self._parent != self._top:
            os.close(self._parent)
        self._parent, self._parts = self._top, []

    def _abandon(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.abandon()

    def _count_entry(self) -> None:
        self._entries_left -= 1
        if self._entries_left < 0:
            said = f"the guest's directory has more entries than allowed (max_entries is {self._max_entries})"
            raise HostFileError(errno.EFBIG, said)

    def _too_large(self) -> HostFileError:
        name = self._entry.name if self._entry is not None else ""
        said = f"the guest's directory has more bytes than allowed, at {name!r} (max_bytes is {self._max_bytes})"
        return HostFileError(errno.EFBIG, said)
