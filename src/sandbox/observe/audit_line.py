"""One event as one line of JSON that holds no secret and no control character."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime

from sandbox.event import LifeEvent

_CHARACTERS = 500
_TOLD = (
    *("why", "cause", "code", "error", "hit", "op", "user", "outcome", "exit_code", "signal", "cpu_seconds"),
    *("output_bytes", "rule", "said", "did", "min_size", "max_size", "pid"),
    *("generation", "former", "reasons", "failures", "task"),
)
"""The fields that are written. A list of what is allowed: a field that is new, whatever it holds, stays out."""
_RECEIPT = ("machine_id", "boot_id", "hostname", "agent", "clock_offset", "round_trip")


def audit_line(event: LifeEvent) -> str:
    """Return the event as one line, its end included."""
    named = {
        "pool": event.pool,
        "template": event.template,
        "vm": event.vm,
        "lease": event.lease,
        "execution": event.execution,
    }
    told = {name: _plain(value) for name, value in named.items() if value}
    if event.seconds is not None:
        told["seconds"] = round(event.seconds, 6)
    told |= {name: _plain(event.fields[name]) for name in _TOLD if event.fields.get(name) not in (None, "")}
    timings = event.fields.get("timings")
    if isinstance(timings, Mapping):
        told["timings"] = {str(name)[:_CHARACTERS]: _plain(seconds) for name, seconds in timings.items()}
    receipt = event.fields.get("receipt")
    if is_dataclass(receipt):
        known = {field.name for field in fields(receipt)}
        told["receipt"] = {name: _plain(getattr(receipt, name)) for name in _RECEIPT if name in known}
    return _line(event.at, event.kind.value, told)


def gap_line(missing: Mapping[str, int], since: datetime, until: datetime) -> str:
    """Return the line that says how many events of which kind are not in the log at this place."""
    return _line(until, "audit_gap", {"since": since.isoformat(), "missing": dict(missing)})


def _line(at: datetime, kind: str, told: Mapping[str, object]) -> str:
    text = json.dumps({"at": at.isoformat(timespec="microseconds"), "kind": kind, **told}, separators=(",", ":"))
    return text.replace("\x7f", "\\u007f") + "\n"  # JSON escapes all other control characters, and all beyond ASCII


def _plain(value: object) -> object:
    """Return what JSON has a form for; of the rest, and of long texts, the beginning."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 6) if abs(value) < float("inf") else None  # NaN compares as False
    text = str(value)
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + "…"
