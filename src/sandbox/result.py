"""What an execution gave: data, whatever happened. Nothing in here raises, except `check` on request."""

from __future__ import annotations

from array import array
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from sandbox.certificate import DeathCertificate
from sandbox.errors import ExecutionFailed
from sandbox.printable import printable

_SHOWN = 60
"""Bytes of a stream in a result's `repr`."""
_MESSAGE = 1000

Kind = Literal["exit", "timeout", "signal"]
Isolation = Literal["hardware", "emulated", ""]


def isolation(accelerator: str) -> Isolation:
    """Return what separates a guest under this accelerator from its host; nothing if that is not known."""
    return "hardware" if accelerator == "kvm" else "emulated" if accelerator else ""


class Outcome(StrEnum):
    """Why an execution ended. One is never turned into another."""

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    CANCELLED = "cancelled"
    """The call was cancelled, and the program killed for it. Seen by who attaches to the execution."""
    GUEST_CRASHED = "guest_crashed"
    """This and all below only in `GuestLost.partial`: what had arrived when the VM or the channel went."""
    GUEST_SHUTDOWN = "guest_shutdown"
    PROTOCOL_ERROR = "protocol_error"
    VM_LOST = "vm_lost"


_KINDS: Mapping[Outcome, Kind] = {Outcome.EXITED: "exit", Outcome.TIMED_OUT: "timeout"}


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """The end of one execution. Times are float seconds; streams are bytes as the guest wrote them.

    `stdout` and `stderr` hold the first bytes up to the capture limit, `stdout_bytes` and `stderr_bytes` count all that
    was written, and the tails hold the last bytes of a stream that was cut. Output before any end is kept.
    """

    outcome: Outcome
    exit_code: int | None
    """The exit status, or None when the program did not exit by itself."""
    signal: int | None
    """The signal that ended the program, or None."""
    stdout: bytes
    stderr: bytes
    stdout_bytes: int
    stderr_bytes: int
    duration: float
    """From sending the request to receiving the end, on the host's monotonic clock."""
    cpu_seconds: float | None = None
    """User and system time of the program, as the guest's kernel tells."""
    peak_memory_bytes: int | None = None
    """The most memory its control group held, as its kernel tells: with page cache, without what was compressed.

    A clone's first program may hold some megabytes more than later ones: pages that those share with the agent.
    """
    vm: str = ""
    """Name of the machine that ran it."""
    id: str = ""
    """The execution's id: `Sandbox.attach` takes it while the VM lives."""
    started_at: datetime | None = None
    """UTC, by the host's clock."""
    ended_at: datetime | None = None
    certificate: DeathCertificate | None = None
    """Why it ended, for every end but an exit with 0."""
    stdout_tail: bytes = b""
    stderr_tail: bytes = b""
    runs: array[int] = field(default_factory=lambda: array("I"), repr=False)
    """How the streams interleave: lengths in order of arrival, in turn of standard output and standard error."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: `start` (restore until ready), `warm_up`, for a pooled VM `queue` and `claim`, and `run`."""
    accelerator: str = ""
    """`kvm`, or `tcg` for software emulation, of the VM that ran it."""

    def __repr__(self) -> str:
        """Return the end and the beginning of the streams, on one short line."""
        shown = ", ".join(f"{name}={value}" for name, value in self._shown())
        return f"<{type(self).__name__} {self.outcome.value}, {shown}>"

    def _shown(self) -> Iterator[tuple[str, str]]:
        if self.exit_code is not None:
            yield "exit_code", str(self.exit_code)
        if self.signal is not None:
            yield "signal", str(self.signal)
        for name, data, total in (
            ("stdout", self.stdout, self.stdout_bytes),
            ("stderr", self.stderr, self.stderr_bytes),
        ):
            if total:
                yield name, repr(data[:_SHOWN]) if total <= _SHOWN else f"{data[:_SHOWN]!r}… of {total} bytes"
        yield "duration", f"{self.duration:.3f} s"
        if self.certificate is not None:
            yield "certificate", repr(printable(self.certificate.summary, 2 * _SHOWN))

    @property
    def isolation(self) -> Isolation:
        """`hardware`; or `emulated`, which is no security boundary."""
        return isolation(self.accelerator)

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
    def combined(self) -> bytes:
        """Both streams in order of arrival, up to where the first of them was cut."""
        pieces: list[bytes] = []
        sources, positions = (self.stdout, self.stderr), [0, 0]
        for index, length in enumerate(self.runs):
            source, start = sources[index % 2], positions[index % 2]
            pieces.append(source[start : start + length])
            positions[index % 2] = start + length
            if start + length > len(source):
                break
        return b"".join(pieces)

    @property
    def combined_truncated(self) -> bool:
        return sum(self.runs) < self.stdout_bytes + self.stderr_bytes or self.stdout_truncated or self.stderr_truncated

    @property
    def text(self) -> str:
        """Standard output as UTF-8, undecodable bytes replaced."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def stderr_text(self) -> str:
        """Standard error in the same way."""
        return self.stderr.decode("utf-8", "replace")

    @property
    def kind(self) -> Kind:
        """The outcome in three words: it exited, it took too long, or it was killed."""
        return _KINDS.get(self.outcome, "signal")

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
        if self.certificate is not None:
            return self.certificate.summary
        return f"exited with {self.exit_code}"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as values that JSON has, as `sandbox exec --json` prints it.

        Streams are text. One that is no UTF-8 has its undecodable bytes replaced, and is there in base64 as well, as
        `stdout_base64` or `stderr_base64`. `exit_code` is `shell_status`. docs/result.schema.json describes the rest.
        """
        document: dict[str, Any] = {
            "kind": self.kind,
            "outcome": self.outcome.value,
            "exit_code": self.shell_status,
            "signal": self.signal,
            "duration": self.duration,
            "cpu_seconds": self.cpu_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "started_at": None if self.started_at is None else self.started_at.isoformat(),
            "ended_at": None if self.ended_at is None else self.ended_at.isoformat(),
            "timings": dict(self.timings),
            "id": self.id,
            "vm": self.vm,
            "accelerator": self.accelerator,
            "isolation": self.isolation,
            "certificate": None if self.certificate is None else asdict(self.certificate),
        }
        for name, data, total in (
            ("stdout", self.stdout, self.stdout_bytes),
            ("stderr", self.stderr, self.stderr_bytes),
        ):
            document[name] = data.decode("utf-8", "replace")
            if document[name].encode() != data:
                document[f"{name}_base64"] = b64encode(data).decode()
            document[f"{name}_bytes"] = total
            document[f"{name}_truncated"] = len(data) < total
        return document

    def check(self) -> Result:
        """Return this result if `ok`, else raise `ExecutionFailed` that carries it."""
        if self.ok:
            return self
        tail = printable(self.stderr[-2000:].decode("utf-8", "replace").strip(), keep="\n\t")
        raise ExecutionFailed(self.describe() + (f"; its last words:\n{tail}" if tail else ""), self)


@dataclass(frozen=True, slots=True, repr=False)
class CellError:
    """The exception that ended a cell, in the guest's words. `str` is one line, safe to show."""

    name: str
    text: str
    traceback: str

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.text[:_MESSAGE]}", _MESSAGE)

    def __repr__(self) -> str:
        return f"<CellError {printable(str(self), 2 * _SHOWN)}>"


@dataclass(frozen=True, slots=True, repr=False)
class CellResult(Result):
    """The end of one call of a persistent context. `exit_code` is 0, or 1 after an error; bash gives its status."""

    value: Mapping[str, Any] | None = None
    """The last expression's value as a MIME bundle: `text/plain` always, others as it offers; binary in base64."""
    displayed: tuple[Mapping[str, Any], ...] = ()
    """What was shown with `display()`, and every plot that was open at the end."""
    error: CellError | None = None
    context_alive: bool = True
    """Whether the interpreter, and with it all state, lives on."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as values that JSON has: those of `Result.to_dict`, and this class's own."""
        return super(CellResult, self).to_dict() | {
            "value": None if self.value is None else dict(self.value),
            "displayed": [dict(bundle) for bundle in self.displayed],
            "error": None if self.error is None else asdict(self.error),
            "context_alive": self.context_alive,
        }

    def _shown(self) -> Iterator[tuple[str, str]]:
        yield from super(CellResult, self)._shown()
        if self.value is not None:
            plain = self.value.get("text/plain")
            yield (
                "value",
                printable(plain, _SHOWN) if isinstance(plain, str) else printable(", ".join(self.value), _SHOWN),
            )
        if self.displayed:
            yield "displayed", str(len(self.displayed))
