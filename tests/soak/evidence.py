"""The record of a soak: what was done, on what machine, what was counted, and the verdict. Written batch by batch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.soak.cycle import Account
from tests.soak.lag import Lag, Moment
from tests.soak.sample import Sample, growth, leaks

KEPT_SAMPLES = 20


@dataclass
class Process:
    """One process's part of a soak: a resumed soak has several, and growth is a matter of each."""

    environment: dict[str, object]
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    worst_lag_ms: float = 0.0
    lag_p99_ms: float = 0.0
    own_worst_lag_ms: float = 0.0
    """Without the time for which other threads and processes had the processors; see `Lag`."""
    own_lag_p99_ms: float = 0.0
    worst_moments: list[dict[str, object]] = field(default_factory=list)
    """Where the time went when the loop was latest; see `Moment`."""

    def see(self, lag: Lag) -> None:
        """Take over what was seen of the loop's lateness."""
        self.worst_lag_ms, self.lag_p99_ms = lag.whole.worst_ms, lag.whole.p99_ms
        self.own_worst_lag_ms, self.own_lag_p99_ms = lag.own.worst_ms, lag.own.p99_ms
        self.worst_moments = [_rounded(moment) for moment in lag.worst]


@dataclass
class Evidence:
    """All of it; `save` and `load` keep it between processes."""

    wanted: int
    seed: int
    account: Account = field(default_factory=Account)
    processes: list[Process] = field(default_factory=list)
    pool: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return self.account.cycles >= self.wanted

    def verdict(self) -> list[str]:
        """Return what speaks against it; nothing if it holds."""
        grown = [f"process {at}: {line}" for at, one in enumerate(self.processes) for line in leaks(one.samples)]
        return [*self.account.wrong, *self.problems, *grown]

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        against = self.verdict()
        document = {
            "n": self.account.cycles,
            "wanted": self.wanted,
            "seed": self.seed,
            "verdict": "failed" if against else "holds" if self.is_complete else "unfinished",
            "against": against,
            "account": asdict(self.account),
            "pool": self.pool,
            "problems": self.problems,
            "processes": [_described(process) for process in self.processes],
        }
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(document, indent=1) + "\n")
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """Return what an earlier process has written."""
        document = json.loads(path.read_text())
        processes = [
            Process(
                environment=record["environment"],
                samples=[Sample(**row) for row in record["samples"]],
                seconds=record["seconds"],
                worst_lag_ms=record["worst_lag_ms"],
                lag_p99_ms=record["lag_p99_ms"],
                own_worst_lag_ms=record["own_worst_lag_ms"],
                own_lag_p99_ms=record["own_lag_p99_ms"],
                worst_moments=record["worst_moments"],
            )
            for record in document["processes"]
        ]
        account = Account(**document["account"])
        return cls(document["wanted"], document["seed"], account, processes, document["pool"], document["problems"])


def _described(process: Process) -> dict[str, object]:
    step = max(1, len(process.samples) // KEPT_SAMPLES) if len(process.samples) > 3 * KEPT_SAMPLES else 1
    return {
        "environment": process.environment,
        "seconds": round(process.seconds, 1),
        "worst_lag_ms": round(process.worst_lag_ms, 1),
        "lag_p99_ms": round(process.lag_p99_ms, 2),
        "own_worst_lag_ms": round(process.own_worst_lag_ms, 1),
        "own_lag_p99_ms": round(process.own_lag_p99_ms, 2),
        "worst_moments": process.worst_moments,
        "samples_taken": len(process.samples),
        "growth": growth(process.samples),
        "samples": [sample.as_row() for sample in process.samples[::step]],
    }


def _rounded(moment: Moment) -> dict[str, object]:
    return {name: round(value, 1) if isinstance(value, float) else value for name, value in asdict(moment).items()}
