"""Logging of the command line: everything to standard error, set-up in plain words, events as key=value lines.

Unless somebody asked for events, one that has a sentence for people is shown as that.
"""

from __future__ import annotations

import logging
import sys

from sandbox.log import IN_WORDS
from sandbox.printable import printable

_EVENT_LEVELS = {0: logging.WARNING, 1: logging.INFO}


class _Plain(logging.Formatter):
    def __init__(self, *, in_words: bool) -> None:
        super().__init__()
        self._in_words = in_words

    def format(self, record: logging.LogRecord) -> str:
        prefix = "sandbox: " if record.name == "sandbox.setup" else f"sandbox: {record.levelname.lower()}: "
        words = getattr(record, IN_WORDS, "") if self._in_words else ""
        return prefix + printable(words or record.getMessage())


def configure(*, verbose: int, quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain(in_words=verbose == 0))
    events = logging.getLogger("sandbox")
    events.addHandler(handler)
    events.propagate = False
    events.setLevel(logging.ERROR if quiet else _EVENT_LEVELS.get(verbose, logging.DEBUG))
    logging.getLogger("sandbox.setup").setLevel(logging.ERROR if quiet else logging.INFO)
