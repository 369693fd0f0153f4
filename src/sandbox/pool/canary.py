"""Try a template before a pool relies on it: some clones, each proved and used, and how long they take."""

from __future__ import annotations

import anyio

from sandbox.errors import SandboxError, TemplateError
from sandbox.pool.policy import too_slow
from sandbox.pool.supervision import contained
from sandbox.vm import READY_SECONDS, VMSource

_CLONES = 3


async def try_canary(new: VMSource, live: VMSource | None, slowdown: float) -> None:
    """Start clones of `new` and of `live` by turns, never two at once; raise `TemplateError` if the new are no good.

    Every clone has proved its identity before it is given here. A live template that cannot be restored any more is no
    reason against its successor; one that is known for it is None.
    """
    new_seconds: list[float] = []
    live_seconds: list[float] = []
    for _ in range(_CLONES):
        try:
            if live is not None:
                live_seconds.append(await _start_and_use(live))
        except SandboxError:
            live_seconds.clear()
        new_seconds.append(await _start_and_use(new))
    if (fault := too_slow(live_seconds, new_seconds, slowdown)) is not None:
        raise TemplateError(f"the next template is not used: {fault}")


async def _start_and_use(source: VMSource) -> float:
    """Return the seconds from the order to ready; raise unless a script runs then."""
    began = anyio.current_time()
    with contained("the start of a clone"):
        async with source.lease() as vm:
            seconds = anyio.current_time() - began
            result = await vm.run("print(6 * 7)", timeout=READY_SECONDS)
    if not result.ok or result.text != "42\n":
        raise TemplateError(f"a clone of the next template cannot run a simple script: {result.describe()}")
    return seconds
