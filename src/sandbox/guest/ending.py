"""From what was seen of an end to its outcome and its death certificate: pure decisions."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from pydantic import Field

from sandbox.certificate import Cause, DeathCertificate
from sandbox.guest.said import Said
from sandbox.result import Outcome

SIGNAL_MAX = 64
_COUNT_MAX = 2**64 - 1
_MICROSECONDS_MAX = 10**15
_FULL_BYTES = 64 * 1024
_OOM_STATUS = 128 + signal.SIGKILL


class Evidence(Said, strict=True):
    """What the guest's kernel knew when a program ended badly."""

    forks_refused: int = Field(ge=0, le=_COUNT_MAX)
    disk_free_bytes: int = Field(ge=0, le=_COUNT_MAX)
    files_free: int = Field(ge=0, le=_COUNT_MAX)
    kernel_log: str = Field(default="", max_length=1000)


class Stamps(Said, strict=True):
    """When the guest did what, in nanoseconds of its wall clock: only for a trace, and only if START asked for it."""

    received: int = Field(ge=0, le=_COUNT_MAX)
    """The agent took START."""
    handed: int = Field(ge=0, le=_COUNT_MAX)
    """A child had the request."""
    read: int | None = Field(default=None, ge=0, le=_COUNT_MAX)
    """The child had read it; this and the next two are missing for a command, which no child of the zygote becomes."""
    dropped: int | None = Field(default=None, ge=0, le=_COUNT_MAX)
    """It had become the user."""
    begun: int | None = Field(default=None, ge=0, le=_COUNT_MAX)
    """It had loaded the program, which ran from then on."""
    dead: int = Field(ge=0, le=_COUNT_MAX)
    """It was reaped."""
    told: int = Field(ge=0, le=_COUNT_MAX)
    """The agent told the end."""


class End(Said, strict=True):
    """The guest's account of how a program ended: data about the program, never trusted for safety."""

    code: int | None = Field(ge=0, le=255)
    signal: int | None = Field(ge=1, le=SIGNAL_MAX)
    cpu_us: int | None = Field(default=None, ge=0, le=_MICROSECONDS_MAX)
    peak_memory_bytes: int | None = Field(default=None, ge=0, le=_COUNT_MAX)
    oom_kills: int | None = Field(default=None, ge=0, le=_COUNT_MAX)
    """Counted after a bad end only."""
    evidence: Evidence | None = None
    refused: str | None = Field(default=None, max_length=200)
    """Why the guest had no room for a process."""
    stamps: Stamps | None = None

    @property
    def cpu_seconds(self) -> float | None:
        """Processor time, in whole numbers on the way: digits of a fraction are long work for an emulated guest."""
        return None if self.cpu_us is None else self.cpu_us / 1e6


_OUTCOMES = {
    Cause.DEADLINE: Outcome.TIMED_OUT,
    Cause.IDLE: Outcome.TIMED_OUT,
    Cause.OUTPUT_LIMIT: Outcome.OUTPUT_LIMIT,
    Cause.CANCELLED: Outcome.CANCELLED,
    Cause.OUT_OF_MEMORY: Outcome.OUT_OF_MEMORY,
    Cause.KERNEL_PANIC: Outcome.GUEST_CRASHED,
    Cause.UNRESPONSIVE: Outcome.GUEST_CRASHED,
    Cause.POWER_OFF: Outcome.GUEST_SHUTDOWN,
    Cause.PROTOCOL: Outcome.PROTOCOL_ERROR,
    Cause.QEMU_KILLED: Outcome.VM_LOST,
    Cause.QEMU_FAILED: Outcome.VM_LOST,
    Cause.CHANNEL: Outcome.VM_LOST,
    Cause.RELEASED: Outcome.VM_LOST,
}
LOST = frozenset({Outcome.GUEST_CRASHED, Outcome.GUEST_SHUTDOWN, Outcome.PROTOCOL_ERROR, Outcome.VM_LOST})
"""The outcomes that are raised as `GuestLost`."""
_SIGNALS = {
    signal.SIGXCPU: (Cause.CPU_LIMIT, "used up its CPU time; raise limits.cpu_seconds"),
    signal.SIGXFSZ: (Cause.FILE_SIZE_LIMIT, "wrote a file beyond limits.file_bytes"),
}


def outcome_of_lost(cause: Cause) -> Outcome:
    """Return the outcome of an execution whose VM or channel went."""
    return _OUTCOMES.get(cause, Outcome.VM_LOST)


def certify(
    end: End, ordered: Cause | None, why: str, duration: float, last_output: float | None
) -> tuple[Outcome, DeathCertificate | None]:
    """Return outcome and certificate of a program that the guest reports as ended.

    `ordered` is why the host had it killed, if it had; `why` says it in words.
    """
    if ordered is None and end.code == 0:
        return Outcome.EXITED, None
    if end.refused is not None and ordered is None:
        return Outcome.EXITED, DeathCertificate(Cause.PROCESS_LIMIT, refusal(end.refused), retry_safe=True)
    cause, summary = _explain(end, ordered, why, duration)
    outcome = _OUTCOMES.get(cause) or (Outcome.EXITED if end.signal is None else Outcome.SIGNALED)
    return outcome, DeathCertificate(cause, summary, retry_safe=False, last_output=last_output, evidence=_evidence(end))


def refusal(said: str) -> str:
    """Return what to say when the guest made no process; `said` is the guest's word."""
    return (
        f"the guest started no process ({said}): nothing ran, so a retry is safe when something in the VM has ended; "
        "give the VM more memory, or run less in it at a time"
    )


def _explain(end: End, ordered: Cause | None, why: str, duration: float) -> tuple[Cause, str]:
    if ordered is not None and (ordered is not Cause.KILLED_BY_CALLER or end.signal is not None):
        return ordered, why
    if end.oom_kills and (end.signal == signal.SIGKILL or end.code == _OOM_STATUS):
        said = "the guest ran out of memory and killed the program; give the VM (--memory) or its limits more"
        return Cause.OUT_OF_MEMORY, said
    if end.signal in _SIGNALS:
        cause, said = _SIGNALS[signal.Signals(end.signal)]
        return cause, f"ended by {signal_name(end.signal)} after {duration:.3g} s: it {said}"
    if end.signal is not None:
        return Cause.SIGNAL, f"ended by {signal_name(end.signal)}"
    said = f"exited with {end.code}"
    if end.evidence is not None and end.evidence.disk_free_bytes < _FULL_BYTES:
        return Cause.DISK_FULL, f"{said}; the guest's disk is full: it lies in memory, give the VM more (--memory)"
    if end.evidence is not None and not end.evidence.files_free:
        return Cause.DISK_FULL, f"{said}; the guest's disk takes no more files: give the VM more memory (--memory)"
    if end.evidence is not None and end.evidence.forks_refused:
        return Cause.PROCESS_LIMIT, f"{said}; {end.evidence.forks_refused} processes were refused by the limit"
    return Cause.EXIT_STATUS, said


def _evidence(end: End) -> Mapping[str, object]:
    found: dict[str, object] = {"peak_memory_bytes": end.peak_memory_bytes}
    if end.oom_kills is not None:
        found["oom_kills"] = end.oom_kills
    if end.signal is not None:
        found["signal"] = signal_name(end.signal)
    if end.evidence is not None:
        found |= end.evidence.model_dump(exclude_defaults=True)
    return found


def signal_name(number: int) -> str:
    """Return a signal's name, such as `SIGTERM`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
