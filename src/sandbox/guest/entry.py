"""What the guest says about files: checked on arrival, never trusted for more than it says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from sandbox.guest.said import Said

Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""As large as the kernel has them, so that none fills the host's memory."""
PATH_CHARACTERS = 4096
"""The longest path that the kernel takes, in bytes, and so in characters too."""


def _no_longer_than_a_path(text: str) -> str:
    if len(text) > PATH_CHARACTERS:
        raise ValueError(f"a path of {len(text)} characters came")
    return text


PathText = Annotated[str, AfterValidator(_no_longer_than_a_path)]
"""A constraint of pydantic's own would refuse names that are no text."""
FileType = Literal["file", "directory", "symlink", "fifo", "socket", "device", "other"]


class FileStat(Said):
    """What the guest says about a file."""

    type: FileType
    size: Number
    mode: Number
    """Permission bits."""
    mtime: float
    """Seconds since 1970, by the guest's clock."""
    uid: Number
    gid: Number
    target: PathText | None = None
    """Where a symbolic link points to."""

    @model_validator(mode="after")
    def _only_links_point(self) -> FileStat:
        if self.target is not None and self.type != "symlink":
            raise ValueError(f"a {self.type} points to something, which only symbolic links do")
        return self


class FileEntry(FileStat):
    """A file in a directory. Bytes of its name that are no text are lone surrogates, as `os.fsdecode` gives them."""

    name: str


class TreeEntry(Said):
    """What the guest says about something in a tree that it sends. Its content follows."""

    type: FileType
    name: str
    """Relative to the tree's top."""
    mode: Number
    mtime: Annotated[int, Field(ge=-(2**92), lt=2**92)]
    """Nanoseconds since 1970: a kernel has 64 bits for the seconds."""
    size: Number
    target: str = ""
    """Where a symbolic link points to."""


class TreeError(Said):
    """Why the guest could not read or make something in a tree."""

    name: str
    errno: Number
    text: str


class Unpacked(Said):
    """What the guest says it has made of a tree."""

    files: Number
    directories: Number
    links: Number
    bytes: Number
    errors: list[TreeError]


class Change(Said):
    """What happened below a watched directory."""

    type: Literal["created", "removed", "modified", "written", "attributes", "overflow"]
    """`written` is when a writer closes the file. After `overflow` changes were lost: look at everything again."""
    path: PathText
    """Relative to what is watched; empty for itself."""
    is_directory: bool
