"""What QEMU itself says of its failure: it goes to the log file that libvirt keeps of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_LOG_BYTES = 64 * 1024
_SAID = re.compile(rb"^(?:\S+Z )?qemu-[\w.-]+: (?!warning: |info: |terminating on signal )(.+?)\r?$", re.MULTILINE)
_SHOWN = 500


class Complaint:
    """The log of one QEMU, open: libvirt's thread removes the file when the process ends."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file

    def text(self) -> str:
        """Return QEMU's own words on why it failed; empty where it has said nothing."""
        if self._file is None:
            return ""
        said = _SAID.findall(self._file.read(_LOG_BYTES))
        return "; ".join(dict.fromkeys(line.decode(errors="replace") for line in said))[:_SHOWN]


@contextmanager
def complaint_in(log_file: Path) -> Iterator[Complaint]:
    """Listen to a QEMU that runs. What a daemon's QEMU says cannot be heard."""
    with ExitStack() as stack:
        file = None
        with suppress(OSError):
            file = stack.enter_context(log_file.open("rb"))
        yield Complaint(file)
