"""The library's logger: structlog events into the standard `logging` tree, below the name `sandbox`.

The library never configures logging. An application that does nothing sees warnings on standard error; one that
configures `logging` gets everything, with the event's fields rendered as escaped `key=value` pairs on one line. An
event that people see who did not ask for events has `in_words`, too: the command line shows that sentence instead.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from functools import cache
from typing import Any

IN_WORDS = "in_words"
"""The attribute of a log record that has the event as a sentence for people."""


class Logger:
    """A thin front for structlog, imported when the first event is due: it costs as much as a VM's restore."""

    def debug(self, event: str, **fields: Any) -> None:
        if logging.getLogger("sandbox").isEnabledFor(logging.DEBUG):
            _bound().debug(event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        if logging.getLogger("sandbox").isEnabledFor(logging.INFO):
            _bound().info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        _bound().warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        _bound().error(event, **fields)

    def prepare(self) -> None:
        """Import what the first event needs (some 80 ms). Blocks; so that no event blocks later."""
        _bound()

    def progress(self, message: str) -> None:
        """Say what set-up is being done, on the logger `sandbox.setup`; the command line shows it as it is."""
        logging.getLogger("sandbox.setup").info(message)


log = Logger()


@cache
def _bound() -> Any:
    import structlog  # noqa: PLC0415 - see Logger

    return structlog.wrap_logger(
        logging.getLogger("sandbox"),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[
            structlog.contextvars.merge_contextvars,
            _render,
        ],
    )


def _render(logger: Any, name: str, event: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """Return the arguments for `logging`: one line, and the sentence as an attribute of the record."""
    import structlog  # noqa: PLC0415 - see Logger

    words = event.pop(IN_WORDS, None)
    line = structlog.processors.KeyValueRenderer(key_order=["event"], repr_native_str=True)(logger, name, event)
    return (line,), {"extra": {IN_WORDS: words} if words else {}}
