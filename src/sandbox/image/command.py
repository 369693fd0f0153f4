"""Run one long program so that nothing of it outlives us: no process, and no mount."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sandbox.errors import ImageError
from sandbox.image.wanted import check_wanted
from sandbox.proc import mounts

GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.2
_DIE_WITH_US = ("setpriv", "--pdeathsig")
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--")


def run_owned(arguments: Sequence[str], environment: Mapping[str, str], log: Path, directory: Path) -> int:
    """Run a program to its end and return its exit status; its output goes to `log`.

    It has no input and a process group of its own, so a terminal's Ctrl-C reaches us and not half of its children.
    Any exception here, and the death of the calling thread, ends it; so does a caller who is cancelled meanwhile.

    As root it runs in namespaces of its own: killing it there kills all of its descendants, and what it mounts is never
    visible to the host, so that no clean-up can ever walk into the host's /proc, /sys or /dev. Without root,
    mmdebstrap makes its own namespaces, and is asked to end: only it can remove files of its subordinate users.
    It is asked to end in a chroot too, where the kernel refuses to make mounts private.
    """
    contained = os.geteuid() == 0 and _root_is_a_mount()
    prefix = (*_DIE_WITH_US, "KILL", "--", *_NAMESPACES) if contained else (*_DIE_WITH_US, "TERM", "--")
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [*prefix, *arguments],
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
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(_POLL_SECONDS)
                check_wanted()
        finally:
            if process.returncode is None:
                _kill_contained(process) if contained else _ask_to_end(process)


def _root_is_a_mount() -> bool:
    return any(mount.point == "/" for mount in mounts())


def _kill_contained(process: subprocess.Popen[bytes]) -> None:
    """Kill the namespace's first process; `unshare` then ends when the last of them is gone."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in children or [str(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    process.wait()


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
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
