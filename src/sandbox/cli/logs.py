"""Logging of the command line: everything to standard error, set-up in plain words, events as key=value lines."""

from __future__ import annotations

import logging
import sys

from sandbox.printable import printable

_EVENT_LEVELS = {0: logging.WARNING, 1: logging.INFO}


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "sandbox: " if record.name == "sandbox.setup" else f"sandbox: {record.levelname.lower()}: "
        return prefix + printable(record.getMessage())


def configure(*, verbose: int, quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    events = logging.getLogger("sandbox")
    events.addHandler(handler)
    events.propagate = False
    events.setLevel(logging.ERROR if quiet else _EVENT_LEVELS.get(verbose, logging.DEBUG))
    logging.getLogger("sandbox.setup").setLevel(logging.ERROR if quiet else logging.INFO)
