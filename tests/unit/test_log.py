"""What an application sees of the library's events."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SAY = """
import logging
{configure}
from sandbox.log import log
log.debug("quiet")
log.info("quiet")
log.progress("quiet")
log.warning("told", of="a\\nb")
log.error("told", of=1)
"""
_LINES = ["event='told' of='a\\nb'", "event='told' of=1"]


@pytest.mark.parametrize(
    ("configure", "lines"),
    [
        ("", _LINES),
        ("logging.basicConfig(format='mine: %(message)s')", [f"mine: {line}" for line in _LINES]),
        ("logging.getLogger('sandbox').addHandler(logging.NullHandler())", []),
    ],
    ids=["does nothing", "configures logging", "wants none"],
)
def test_warnings_are_seen_and_nothing_else(configure: str, lines: list[str]) -> None:
    """An application that does nothing sees warnings, one line each; one that configures logging has them its way."""
    command = [sys.executable, "-c", _SAY.format(configure=configure)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr.splitlines()) == ("", lines)


_SAY_IN_WORDS = """
from sandbox.cli.logs import configure
from sandbox.log import log
configure(verbose={verbose}, quiet=False)
log.warning("told", of=1, in_words="It was told:\\na sentence")
"""


@pytest.mark.parametrize(("verbose", "line"), [(0, "It was told:\\na sentence"), (1, "event='told' of=1")])
def test_the_command_line_tells_in_words_what_it_can(verbose: int, line: str) -> None:
    """One line, for people; who asks for events gets them with their fields."""
    command = [sys.executable, "-c", _SAY_IN_WORDS.format(verbose=verbose)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", f"sandbox: warning: {line}\n")
