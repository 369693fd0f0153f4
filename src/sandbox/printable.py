"""Text that others have written, in messages of ours: it must not act where they are shown, nor be endless."""

from __future__ import annotations

MOST_CHARACTERS = 4000


def printable(text: str, most: int = MOST_CHARACTERS, *, keep: str = "") -> str:
    """Return `text` as one line that any terminal, file or encoding takes, cut after `most` characters.

    Control characters, line ends, halves of characters, and characters that turn the direction of writing become
    escapes as in Python's source, except for those in `keep`. What is printable already stays as it is.
    """
    if len(text) <= most and text.isprintable():
        return text
    shown = "".join(one if one.isprintable() or one in keep else repr(one)[1:-1] for one in text[:most])
    return shown if len(shown) <= most and len(text) <= most else shown[:most] + "…"
