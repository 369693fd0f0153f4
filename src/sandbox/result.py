"""What an execution gave: data, whatever happened. Nothing in here raises, except `check` on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from signal import Signals

from sandbox.errors import ExecutionFailed


class Outcome(StrEnum):
    """Why an execution ended. One is never turned into another."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    VM_LOST = "vm_lost"
    """Only in `GuestLost.partial`: what had arrived when the VM or the channel went."""


@dataclass(frozen=True, slots=True)
class Result:
    """The end of one execution. Times are float seconds; streams are bytes as the guest wrote them.

    `stdout`, `stderr` and `combined` (both in order of arrival) hold the first bytes up to the capture limit;
    `stdout_bytes` and `stderr_bytes` count all that was written. Output before a time-out is kept.
    """

    outcome: Outcome
    exit_code: int | None
    """The exit status, or None when the program did not exit by itself."""
    signal: int | None
    """The signal that ended the program, or None."""
    stdout: bytes
    stderr: bytes
    combined: bytes
    stdout_bytes: int
    stderr_bytes: int
    duration: float
    """From sending the request to receiving the end, on the host's monotonic clock."""
    cpu_seconds: float | None = None
    """User and system time of the program, as the guest's kernel tells."""
    peak_memory_bytes: int | None = None
    """The most memory its control group held, page cache included, as the guest's kernel tells."""
    vm: str = ""
    """Name of the machine that ran it."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: `start` (restore until ready), `warm_up`, for a pooled VM `queue` and `claim`, and `run`."""

    @property
    def ok(self) -> bool:
        """Whether the program exited with 0."""
        return self.outcome is Outcome.EXITED and self.exit_code == 0

    @property
    def timed_out(self) -> bool:
        return self.outcome is Outcome.TIMED_OUT

    @property
    def stdout_truncated(self) -> bool:
        return len(self.stdout) < self.stdout_bytes

    @property
    def stderr_truncated(self) -> bool:
        return len(self.stderr) < self.stderr_bytes

    @property
    def text(self) -> str:
        """Standard output as UTF-8, undecodable bytes replaced."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def shell_status(self) -> int:
        """The status that a shell would report: the exit code, 124 for a time-out, 128 + n for a signal."""
        if self.outcome is Outcome.TIMED_OUT:
            return 124
        if self.exit_code is not None:
            return self.exit_code
        return 128 + (self.signal or 9)

    def describe(self) -> str:
        """Return one line on how it ended."""
        if self.outcome is Outcome.TIMED_OUT:
            return f"timed out after {self.duration:.3g} s; the whole process tree was killed"
        if self.outcome is Outcome.OUT_OF_MEMORY:
            return "the guest ran out of memory and killed the program; give the VM more (--memory)"
        if self.signal is not None:
            return f"ended by {_signal_name(self.signal)}"
        return f"exited with {self.exit_code}"

    def check(self) -> Result:
        """Return this result if `ok`, else raise `ExecutionFailed` that carries it."""
        if self.ok:
            return self
        tail = self.stderr[-2000:].decode("utf-8", "replace").strip()
        raise ExecutionFailed(self.describe() + (f"; its last words:\n{tail}" if tail else ""), self)


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"
