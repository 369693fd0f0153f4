"""Templates whose saved state QEMU could not load, as this process has found: they are used no more."""

from __future__ import annotations

import anyio

from sandbox.errors import TemplateError
from sandbox.template.manifest import Requirement
from sandbox.template.store import Stored

_MOST = 2
"""One may be damaged in a way that no digest tells; when one that was baked anew fails too, another bake is no help."""

_found: dict[tuple[str, str], str] = {}
"""QEMU's words, by a template's directory and the time that it was baked."""


class Condition:
    """What all copies of one template know of it: whether QEMU can load it, and what is used instead if not."""

    def __init__(self) -> None:
        self.complaint = ""
        """QEMU's words; empty as long as it has loaded the state, or was not asked to."""
        self.lock = anyio.Lock()


def note_unloadable(stored: Stored, said: str) -> None:
    """Have this process use the template no more."""
    _found[_key(stored)] = said


def is_unloadable(stored: Stored) -> bool:
    """Return whether QEMU could not load it when this process tried."""
    return _key(stored) in _found


def check_hope(requirement: Requirement) -> None:
    """Raise `TemplateError`, with QEMU's words, if one that was baked anew for this could not be loaded either."""
    said = [words for (place, _), words in _found.items() if requirement.key in place]
    if len(said) >= _MOST:
        raise TemplateError(
            f"a template was baked anew, and QEMU cannot load its state either: {said[-1]}; "
            "look at this host's QEMU and libvirt, then start a new process"
        )


def _key(stored: Stored) -> tuple[str, str]:
    return str(stored.directory), stored.manifest.created
