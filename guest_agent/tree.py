"""What packing and unpacking a tree have in common.

Every name is opened in its own directory, without following links: what changes a tree meanwhile leads nowhere else.
Few calls are made for each file, because each of them costs an emulated guest dearly.
"""

import os

import content

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_below(top, relative):
    """Return a descriptor of a directory; no step to it is a link."""
    fd = os.open(".", DIRECTORY, dir_fd=top)
    for part in relative.split("/") if relative else ():
        try:
            below = os.open(part, DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def failure(name, error):
    """Return what says why something in the tree was not read or made."""
    return {"name": name, **content.refusal(error)}
