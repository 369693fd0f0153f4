"""How one execution went, and what its callers are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sandbox.certificate import Cause, DeathCertificate
from sandbox.errors import GuestLost, ProtocolError
from sandbox.guest.ending import End, certify, outcome_of_lost
from sandbox.guest.output import Record
from sandbox.result import Outcome, Result
from sandbox.wire import Kind

_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Ending:
    """What was seen when it ended: the guest's report of its end, or the loss of the VM."""

    end: End | GuestLost
    ordered: Cause | None
    """Why the host had it killed, if it had, and `why` in words."""
    why: str
    started_at: datetime
    ended_at: datetime
    duration: float
    last_output: float | None
    """Seconds from the last output to the end."""
    was_sent: bool
    """Whether the request can have reached the guest."""

    def judge(self) -> tuple[Outcome, DeathCertificate | None]:
        """Return outcome and certificate."""
        if isinstance(self.end, End):
            return certify(self.end, self.ordered, self.why, self.duration, self.last_output)
        given = self.end.certificate
        cause, summary = given.cause if given is not None else Cause.CHANNEL, str(self.end)
        evidence = dict(given.evidence) if given is not None else {}
        if self.ordered is not None and cause is Cause.UNRESPONSIVE:  # the deadline is why the VM had to go
            evidence["vm"] = summary
            cause, summary = self.ordered, f"{self.why}; {summary}"
        return outcome_of_lost(cause), DeathCertificate(cause, summary, not self.was_sent, self.last_output, evidence)

    def account(self, written: int) -> dict[str, object]:
        """Return how it ended, in a few plain values."""
        outcome, certificate = self.judge()
        end = self.end if isinstance(self.end, End) else None
        return {
            "outcome": outcome.value,
            "cause": certificate.cause.value if certificate is not None else None,
            "exit_code": end.code if end is not None else None,
            "signal": end.signal if end is not None else None,
            "cpu_seconds": end.cpu_seconds if end is not None else None,
            "output_bytes": written,
        }

    async def report(
        self, record: Record, vm: str, ident: str, timings: Mapping[str, float], accelerator: str = ""
    ) -> Result:
        """Return the result, with what was kept of the output."""
        out, err = record.streams[Kind.OUT], record.streams[Kind.ERR]
        outcome, certificate = self.judge()
        end = self.end if isinstance(self.end, End) else None
        was_killed = self.ordered is not None and outcome is not Outcome.EXITED
        return Result(
            outcome=outcome,
            exit_code=end.code if end is not None and not was_killed else None,
            signal=end.signal if end is not None else None,
            stdout=await out.head(),
            stderr=await err.head(),
            stdout_bytes=out.total,
            stderr_bytes=err.total,
            duration=self.duration,
            cpu_seconds=end.cpu_seconds if end is not None else None,
            peak_memory_bytes=end.peak_memory_bytes if end is not None else None,
            vm=vm,
            id=ident,
            started_at=self.started_at,
            ended_at=self.ended_at,
            certificate=certificate,
            stdout_tail=out.tail(_TAIL_BYTES),
            stderr_tail=err.tail(_TAIL_BYTES),
            runs=record.runs,
            timings={**timings, "run": self.duration},
            accelerator=accelerator,
        )


def lost(cause: Cause, said: str, **evidence: object) -> GuestLost:
    """Return the error for a conversation that ended, with its certificate."""
    kind = ProtocolError if cause is Cause.PROTOCOL else GuestLost
    error = kind(said)
    error.certificate = DeathCertificate(cause, said, retry_safe=False, evidence=evidence)
    return error
