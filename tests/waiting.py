"""What tests wait for."""

from __future__ import annotations

from sandbox.guest.events import Output
from sandbox.guest.execution import Execution


async def until_written(execution: Execution, size: int) -> None:
    """Return when standard output has so many bytes."""
    total = 0
    async for event in execution.events():
        total += len(event.data) if isinstance(event, Output) and event.stream == "stdout" else 0
        if total >= size:
            return
    raise AssertionError(f"it ended after {total} bytes")
