"""The log of a guest's kernel: how it is read in the guest, and the lines that the host makes of it."""

from __future__ import annotations

import re
from typing import NamedTuple

READ = """
import os
log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
try:
    while record := os.read(log, 8192):
        os.write(1, record)
except BlockingIOError:
    pass
"""
"""A program for the guest that prints all of it. Whoever runs it bounds what it takes."""
LOG_BYTES = 256 * 1024
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_RECORD = re.compile(r"^\d+,\d+,(\d{1,15}),[^;]*;(.*)$")


class LogLine(NamedTuple):
    """What the kernel said, and when by its own clock, in seconds."""

    at: float
    text: str


def log_lines(text: str) -> list[LogLine]:
    """Return the lines of such records, in order of their times; what is no record is left out."""
    records = [match for match in map(_RECORD.match, text.split("\n")) if match is not None]
    found = [LogLine(int(match[1]) / 1e6, _ESCAPED.sub(_character, match[2])) for match in records]
    return sorted(found, key=lambda line: line.at)


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16))
