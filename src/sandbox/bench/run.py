"""A run of the benchmark: its figures and what they were measured on, as one document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.bench.figure import Figure
from sandbox.bench.targets import judge
from sandbox.errors import ConfigError
from sandbox.stored import read_stored
from sandbox.trace.plain import as_plain, from_plain
from sandbox.trace.span import Span


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured, where, and what was not: everything that a report shows."""

    figures: dict[str, Figure]
    surroundings: Mapping[str, object]
    pending: Mapping[str, str]
    """The figures that nobody can measure yet, and what they are."""
    notes: Sequence[str] = ()
    """What could not be measured, and why."""
    traces: Mapping[str, Sequence[Span]] = field(default_factory=dict)
    """Where the time of some figures goes: the stages of one restore, one boot, by name."""

    def as_dict(self) -> dict[str, Any]:
        """Return the document of `sandbox bench --json`, with each figure's verdict."""
        figures = [figure.as_dict() | _verdict(figure) for figure in self.figures.values()]
        return {
            "environment": dict(self.surroundings),
            "figures": figures,
            "pending": dict(self.pending),
            "notes": list(self.notes),
            "traces": {name: as_plain(spans) for name, spans in self.traces.items()},
        }

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read such a document; raises `ConfigError` when the file holds something else."""
        try:
            document: dict[str, Any] = json.loads(read_stored(path))
            figures = [Figure.from_dict(figure) for figure in document["figures"]]
            facts, pending = dict(document["environment"]), dict(document["pending"])
            notes = [str(note) for note in document.get("notes", [])]
            traces = {str(name): from_plain(records) for name, records in document.get("traces", {}).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ConfigError(f"{path} is no document of `sandbox bench --json`: {error}") from error
        return cls({figure.id: figure for figure in figures}, facts, pending, notes, traces)


def _verdict(figure: Figure) -> dict[str, Any]:
    verdict, why = judge(figure)
    return {"verdict": verdict, "missed_by": why}
