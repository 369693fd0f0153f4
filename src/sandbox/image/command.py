"""Run one long program so that nothing of it outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sandbox.errors import ImageError

GRACE_SECONDS = 10.0


def run_owned(arguments: Sequence[str], environment: Mapping[str, str], log: Path, directory: Path) -> int:
    """Run a program to its end and return its exit status; its output goes to `log`.

    It has no input and a process group of its own, so a terminal's Ctrl-C reaches us and not half of its children.
    Any exception here, and the death of the calling thread, ends it: first politely, because mmdebstrap then
    removes what it has made under other user ids, and after a grace period by force.
    """
    watched = ["setpriv", "--pdeathsig", "TERM", "--", *arguments]
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                watched,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=directory,
                umask=0o022,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise ImageError("the command `setpriv` is missing: install Debian's package util-linux") from error
        try:
            return process.wait()
        finally:
            if process.returncode is None:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    finally:
        # The leader may be gone and members of its group not; an empty group is what we want to find.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_lines(log: Path, count: int = 15) -> str:
    """Return the end of a program's output for a message."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return "\n".join(lines[-count:])
