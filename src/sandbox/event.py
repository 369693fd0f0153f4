"""What happens in a pool, as records: the stream that logs, metrics, the audit log and hooks are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum


class EventKind(StrEnum):
    """Each value names one event; `LifeEvent.fields` holds what is told with it."""

    POOL_OPENED = "pool_opened"
    POOL_CLOSED = "pool_closed"
    VM_STARTED = "vm_started"
    """`seconds` from the order to ready; stage timings, and what the guest has confirmed of its identity."""
    VM_START_FAILED = "vm_start_failed"
    """`seconds` until it failed; `error`, `code`."""
    VM_PAUSED = "vm_paused"
    VM_WOKEN = "vm_woken"
    """`seconds` that it took."""
    CLAIM_REFUSED = "claim_refused"
    """`seconds` that the caller had waited; `error`, `code`. A cancelled claim counts, too."""
    LEASE_BEGAN = "lease_began"
    """`seconds` that the caller waited; `hit`: whether a ready VM was there at once."""
    LEASE_ENDED = "lease_ended"
    """`seconds` that it was held; `why`: `released`, `expired`, `lost`, `closed`; `cause`, if the VM was lost."""
    VM_DESTROYED = "vm_destroyed"
    """`seconds` from its order to its end; `why` as above, or `evicted`."""
    EXECUTION_STARTED = "execution_started"
    """`user`, `op`."""
    EXECUTION_ENDED = "execution_ended"
    """`seconds` that it ran; `outcome`, `cause`, `exit_code`, `signal`, `cpu_seconds`, `output_bytes`."""
    ANOMALY = "anomaly"
    """`rule`, `said`, and what was done about it."""


@dataclass(frozen=True, slots=True)
class LifeEvent:
    """One thing that happened. Names are empty where they do not apply."""

    kind: EventKind
    pool: str
    template: str = ""
    vm: str = ""
    lease: str = ""
    execution: str = ""
    seconds: float | None = None
    """The duration that belongs to it, by the monotonic clock."""
    fields: Mapping[str, object] = field(default_factory=dict)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def flat(self) -> dict[str, object]:
        """Return all of it as one flat dictionary, without what is empty."""
        named = {
            "pool": self.pool,
            "template": self.template,
            "vm": self.vm,
            "lease": self.lease,
            "execution": self.execution,
            "seconds": None if self.seconds is None else round(self.seconds, 6),
        }
        return {key: value for key, value in (named | dict(self.fields)).items() if value not in (None, "")}


Observer = Callable[[LifeEvent], None]
"""Called in the event loop's thread as things happen; it must not block. What it raises is logged, nothing more."""
