"""What an honest caller does with its VM, over and over: each answer is checked, and the time that it took is noted."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sandbox.bench.figure import percentile
from sandbox.guest.context import Context
from sandbox.vm import VM

KINDS = ("run", "exec", "write", "read", "cell")
_SECONDS = 60.0
_RUN = "import sys; print({x} * {y}, len(sys.stdin.buffer.read()))"


@dataclass
class Calls:
    """How long honest calls took, by kind, and what was wrong with any."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    wrong: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(map(len, self.seconds.values()))

    def percentile(self, percent: float) -> float:
        """Return a percentile over all kinds, in seconds. The same number of calls of each kind was made."""
        return percentile([one for samples in self.seconds.values() for one in samples], percent)

    def figures(self) -> dict[str, object]:
        """Return count and percentiles in milliseconds, of each kind and of all."""
        samples = {**self.seconds, "all": [one for samples in self.seconds.values() for one in samples]}
        return {
            kind: {"n": len(some)} | {f"p{each}_ms": round(percentile(some, each) * 1e3, 1) for each in (50, 95, 99)}
            for kind, some in samples.items()
            if some
        }

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[kind].append(time.monotonic() - started)


async def call_honestly(vm: VM, context: Context, until: float, calls: Calls, draw: random.Random) -> None:
    """Make calls of every kind in turn until then, as `time.monotonic` counts, and finish the turn that was begun."""
    while time.monotonic() < until:
        x, y, data = draw.randrange(1 << 32), draw.randrange(1 << 32), draw.randbytes(draw.choice((1, 1000, 40_000)))
        with calls.timed("run"):
            ran = await vm.run(_RUN.format(x=x, y=y), stdin=data, timeout=_SECONDS)
        with calls.timed("exec"):
            summed = await vm.exec(f"echo $(({x} + {y})) && exit 3", timeout=_SECONDS)
        with calls.timed("write"):
            await vm.write_file("data", data)
        with calls.timed("read"):
            read = await vm.read_file("data", timeout=_SECONDS)
        with calls.timed("cell"):
            cell = await context.run(f"kept = globals().get('kept', 0) + 1; {x} ^ {y}", timeout=_SECONDS)
        _expect(calls, ran.ok and ran.text == f"{x * y} {len(data)}\n", f"run: {ran.describe()}")
        _expect(calls, (summed.exit_code, summed.text) == (3, f"{x + y}\n"), f"exec: {summed.describe()}")
        _expect(calls, read == data, f"{len(data)} bytes were written, {len(read)} others were read")
        _expect(calls, (cell.value or {}).get("text/plain") == str(x ^ y), f"cell: {cell.describe()}")


def _expect(calls: Calls, is_right: bool, otherwise: str) -> None:
    if not is_right:
        calls.wrong.append(f"an honest call came out wrong: {otherwise}")
