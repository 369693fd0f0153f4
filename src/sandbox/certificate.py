"""The death certificate: why something ended, with the evidence and what follows for the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sandbox.printable import printable

SUMMARY_CHARACTERS = 1000


class Cause(StrEnum):
    """The one reason that is stated for an abnormal end."""

    DEADLINE = "deadline"
    IDLE = "idle"
    """Nothing was written for longer than allowed."""
    OUTPUT_LIMIT = "output_limit"
    CANCELLED = "cancelled"
    KILLED_BY_CALLER = "killed_by_caller"
    OUT_OF_MEMORY = "out_of_memory"
    CPU_LIMIT = "cpu_limit"
    FILE_SIZE_LIMIT = "file_size_limit"
    PROCESS_LIMIT = "process_limit"
    DISK_FULL = "disk_full"
    SIGNAL = "signal"
    EXIT_STATUS = "exit_status"
    """The program ended itself with a status other than 0."""
    KERNEL_PANIC = "kernel_panic"
    POWER_OFF = "power_off"
    """The guest powered itself off or restarted."""
    QEMU_KILLED = "qemu_killed"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    """The host's kernel killed QEMU for want of memory: its control group's bound, or the host's end of it."""
    QEMU_FAILED = "qemu_failed"
    UNRESPONSIVE = "unresponsive"
    """The guest gave no sign of life, or did not obey a kill."""
    PROTOCOL = "protocol"
    CHANNEL = "channel"
    """The channel broke while QEMU went on."""
    HOST_DEFECT = "host_defect"
    """The library failed to take what the guest sent: its own mistake. The log has it."""
    RELEASED = "released"
    """The lease was ended by its owner while the program ran."""


@dataclass(frozen=True, slots=True)
class DeathCertificate:
    """Why it ended, and what is known about it from both sides."""

    cause: Cause
    summary: str
    """One line for people: what happened and, where there is a remedy, what to do."""
    retry_safe: bool
    """True only if the program certainly never began."""
    last_output: float | None = None
    """Seconds from the last output to the end; None if there was none."""
    evidence: Mapping[str, object] = field(default_factory=dict)
    """What guest and host saw: counters, log lines, statuses. Words of the guest are data, not proof."""

    def __post_init__(self) -> None:
        """Have the summary be one line that is safe to show, whoever has written a part of it."""
        object.__setattr__(self, "summary", printable(self.summary, SUMMARY_CHARACTERS))

    def __str__(self) -> str:
        return self.summary
