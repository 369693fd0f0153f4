"""What the guest says about files: checked on arrival, never trusted for more than it says."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FileType = Literal["file", "directory", "symlink", "fifo", "socket", "device", "other"]


class FileStat(BaseModel):
    """What the guest says about a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: FileType
    size: int
    mode: int
    """Permission bits."""
    mtime: float
    """Seconds since 1970, by the guest's clock."""
    uid: int
    gid: int
    target: str | None = None
    """Where a symbolic link points to."""


class FileEntry(FileStat):
    """A file in a directory. Bytes of its name that are no text are lone surrogates, as `os.fsdecode` gives them."""

    name: str


class Change(BaseModel):
    """What happened below a watched directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["created", "removed", "modified", "written", "attributes", "overflow"]
    """`written` is when a writer closes the file. After `overflow` changes were lost: look at everything again."""
    path: str
    """Relative to what is watched; empty for itself."""
    is_directory: bool
