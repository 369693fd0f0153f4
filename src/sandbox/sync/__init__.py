"""The same for synchronous callers: notebooks, scripts, frameworks without an event loop.

    import sandbox.sync

    sandbox.sync.run("print(1)").text

    with sandbox.sync.VMPool(PoolConfig(min_size=4)) as pool:
        with pool.acquire() as vm:
            vm.run("print(6 * 7)").check()

Names and promises are those of the asynchronous classes. Everything runs on one event loop in a thread of its own, so
it also works where another event loop runs already, as in a notebook; there it blocks that loop while it waits.
Ctrl-C interrupts a call as a cancellation does, and returns when its VM is cleaned up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Unpack

from sandbox import oneshot
from sandbox.config import PoolConfig
from sandbox.guest.sandbox import RunOptions
from sandbox.pool import pool as asynchronous
from sandbox.pool.statistics import PoolStatistics
from sandbox.result import Result
from sandbox.sync.inside import Context, Execution, Files, Sandbox
from sandbox.sync.portal import portal
from sandbox.vm import VMSource

__all__ = ["Context", "Execution", "Files", "Sandbox", "VMPool", "run"]


def run(
    code: str,
    *,
    source: VMSource | VMPool | None = None,
    language: str = "python",
    args: Sequence[str] = (),
    **options: Unpack[RunOptions],
) -> Result:
    """Run code in a VM of its own and destroy the VM; see `sandbox.run`."""
    inner = source._inner if isinstance(source, VMPool) else source
    return portal().call(oneshot.run(code, source=inner, language=language, args=args, **options))


class VMPool:
    """A pool of fresh VMs; see `sandbox.VMPool`."""

    def __init__(self, config: PoolConfig | None = None, *, source: VMSource | None = None) -> None:
        self._portal = portal()
        self._inner = self._portal.call(_make(config, source))

    def __repr__(self) -> str:
        return repr(self._inner)

    def open(self) -> None:
        self._portal.call(self._inner.open())

    def close(self) -> None:
        self._portal.call(self._inner.aclose())

    def __enter__(self) -> VMPool:
        self.open()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @contextmanager
    def acquire(self, timeout: float | None = None) -> Iterator[Sandbox]:
        with self._portal.enter(self._inner.acquire(timeout)) as vm:
            yield Sandbox(self._portal, vm)

    def run(
        self,
        code: str,
        *,
        language: str = "python",
        args: Sequence[str] = (),
        claim_timeout: float | None = None,
        **options: Unpack[RunOptions],
    ) -> Result:
        running = self._inner.run(code, language=language, args=args, claim_timeout=claim_timeout, **options)
        return self._portal.call(running)

    def wait_ready(self, size: int | None = None) -> None:
        self._portal.call(self._inner.wait_ready(size))

    def statistics(self) -> PoolStatistics:
        return self._inner.statistics()


async def _make(config: PoolConfig | None, source: VMSource | None) -> asynchronous.VMPool:
    return asynchronous.VMPool(config, source=source)
