"""What pairs of tenants have shown: kept in a file, so that a long run goes on after an interruption."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class CanaryRecord:
    """Pairs that are over; `save` and `load` keep it between processes."""

    wanted: int
    pairs: int = 0
    seconds: float = 0.0
    searched_inside: int = 0
    """Of the pairs, those whose second tenant also searched everything from inside, its memory and block device too."""
    found: list[str] = field(default_factory=list)
    """What a second tenant, or the host in its VM, has found. Nothing, if the pool keeps its promise."""
    missed: list[str] = field(default_factory=list)
    """What the same searches did not find in the first tenant's own VM: the control. Nothing, if they can find."""
    control: dict[str, int] = field(default_factory=dict)
    """In how many first tenants each place held the secret."""
    least_searched_mib: int = 0
    """So much of a second tenant's QEMU was searched by the host, at the least."""
    environments: list[dict[str, object]] = field(default_factory=list)

    @property
    def left(self) -> int:
        return max(0, self.wanted - self.pairs)

    def note_control(self, places: set[str]) -> None:
        for place in places:
            self.control[place] = self.control.get(place, 0) + 1

    def note_searched(self, mib: int) -> None:
        self.least_searched_mib = min(self.least_searched_mib, mib) if self.least_searched_mib else mib

    def describe(self) -> str:
        """Return the figure in one line."""
        control = ", ".join(f"{place} {count}" for place, count in sorted(self.control.items()))
        return (
            f"canaries: {len(self.found)} found by the next tenant, N = {self.pairs} pairs,"
            f" {self.seconds / self.pairs:.2f} s each; searched: at least {self.least_searched_mib} MiB of its QEMU,"
            f" what its guest sees, in {self.searched_inside} pairs also memory and block device from inside; control,"
            f" found in the tenant's own VM: {control}"
        )

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        verdict = "failed" if self.found or self.missed else "unfinished" if self.left else "holds"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"verdict": verdict, **asdict(self)}, indent=1) + "\n")
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path | None, wanted: int) -> CanaryRecord:
        """Return what earlier processes have noted, or an empty record."""
        if path is None or not path.exists():
            return cls(wanted)
        document = json.loads(path.read_text())
        del document["verdict"]
        return cls(**document | {"wanted": wanted})
