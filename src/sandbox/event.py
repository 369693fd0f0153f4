"""What happens in a pool, as records: the stream that logs, metrics, the audit log and hooks are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable


class EventKind(StrEnum):
    """Each value names one event; `LifeEvent.fields` holds what is told with it."""

    POOL_OPENED = "pool_opened"
    POOL_CLOSED = "pool_closed"
    VM_STARTED = "vm_started"
    """`seconds` from the order to ready; `pid` of its QEMU, `timings` by stage, `receipt` of what the guest proved."""
    VM_START_FAILED = "vm_start_failed"
    """`seconds` until it failed; `error`, `code`."""
    VM_START_ABANDONED = "vm_start_abandoned"
    """`seconds` since its order: the pool closed, or ended, before the VM was ready."""
    VM_PAUSED = "vm_paused"
    VM_WOKEN = "vm_woken"
    """`seconds` that it took."""
    CLAIM_REFUSED = "claim_refused"
    """`seconds` that the caller had waited; `error`, `code`. A cancelled claim counts, too."""
    LEASE_BEGAN = "lease_began"
    """`seconds` that the caller waited; `hit`: whether a ready VM was there at once."""
    LEASE_ENDED = "lease_ended"
    """`seconds` that it was held; `why`: `released`, `expired`, `lost`, `killed`, `closed`; `cause`, if it was lost."""
    VM_DESTROYED = "vm_destroyed"
    """`seconds` from its order to its end; `why` as above, or `evicted`; `cause`, if it was lost."""
    EXECUTION_STARTED = "execution_started"
    """`user`, `op`."""
    EXECUTION_ENDED = "execution_ended"
    """`seconds` that it ran; `outcome`, `cause`, `exit_code`, `signal`, `cpu_seconds`, `output_bytes`."""
    TEMPLATE_DRIFTED = "template_drifted"
    """`generation`, `reasons`: the live template is not what should be used any more. Told once for each successor."""
    TEMPLATE_BAKED = "template_baked"
    """`seconds` that it took; `generation`. It is not used before it was tried."""
    TEMPLATE_BAKE_FAILED = "template_bake_failed"
    """`error`, `code`, `failures` in a row: no next generation could be made; the pool stays on the live one."""
    CANARY_FAILED = "canary_failed"
    """`generation`, `error`, `code`, `failures` in a row: the next generation was tried and thrown away."""
    GENERATION_CHANGED = "generation_changed"
    """`seconds` since the roll-over began; `generation`, `former`, `why`: drift's reasons, `ordered`, `rolled back`."""
    TASK_FAILED = "task_failed"
    """`task`, `error`, `code`, `failures` in a row: a task beside the VMs failed, such as that which looks after the
    template; it goes on after a pause, and the pool with it."""
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

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as values that JSON has: `kind`, `at` (ISO 8601, UTC), and the rest as in `flat`."""
        return {"kind": self.kind.value, "at": self.at.isoformat()} | {
            key: _plain(value) for key, value in self.flat().items()
        }


def _plain(value: object) -> Any:
    """Return a value as JSON has it; what JSON does not know, and has no `to_dict`, as its words."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if callable(to_dict := getattr(value, "to_dict", None)):
        return to_dict()
    return str(value)


Observer = Callable[[LifeEvent], None]
"""Called in the event loop's thread as things happen; it must not block. What it raises is logged, nothing more."""


@runtime_checkable
class Commentator(Protocol):
    """An observer that adds events of its own, and may end VMs: each pool that it observes gives it the means to."""

    def __call__(self, event: LifeEvent, /) -> None: ...

    def join_pool(self, pool: str, say: Observer, end_vm: Callable[[str], bool]) -> None:
        """Take two functions, both for the event loop's thread only.

        `say` tells an event to all observers of this pool, itself too, after the one that is being told. `end_vm`
        destroys the VM of a name, whoever holds it, and returns whether there was one; its lease ends as `killed`.
        """
        ...
