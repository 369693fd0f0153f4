"""The same for synchronous callers: notebooks, scripts, frameworks without an event loop.

    import sandbox.sync

    sandbox.sync.run("print(1)").text

    with sandbox.sync.VMPool(PoolConfig(min_size=4)) as pool:
        with pool.acquire() as vm:
            vm.run("print(6 * 7)").check()

Names and promises are those of the asynchronous classes, with `close` for `aclose`. Everything runs on one event loop
in a thread of its own, so it also works where another event loop runs already, as in a notebook; there it blocks that
loop while it waits. Ctrl-C interrupts a call as a cancellation does, and returns when its VM is cleaned up. Observers
and `on_output` are called in that thread: a call that waits raises `StateError` there, one that only asks is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Unpack

from sandbox import oneshot
from sandbox.arguments import GuestPath
from sandbox.config import PoolConfig
from sandbox.event import Observer
from sandbox.guest.sandbox import RunOptions
from sandbox.pool import pool as asynchronous
from sandbox.pool.statistics import GenerationStatistics, PoolStatistics
from sandbox.result import Result
from sandbox.sync.inside import Context, Execution, Files, Sandbox
from sandbox.sync.lease import Lease
from sandbox.sync.portal import portal
from sandbox.vm import VMSource

__all__ = ["Context", "Execution", "Files", "Lease", "Sandbox", "VMPool", "run"]

DEFAULT = asynchronous.DEFAULT


def run(
    code: str,
    *,
    source: VMSource | VMPool | None = None,
    language: str = "python",
    args: Sequence[GuestPath] = (),
    **options: Unpack[RunOptions],
) -> Result:
    """Run code in a VM of its own and destroy the VM; see `sandbox.run`."""
    inner = source._inner if isinstance(source, VMPool) else source
    return portal().call(oneshot.run(code, source=inner, language=language, args=args, **options))


class VMPool:
    """A pool of fresh VMs; see `sandbox.VMPool`."""

    def __init__(
        self,
        config: PoolConfig | None = None,
        *,
        source: VMSource | None = None,
        sources: Mapping[str, VMSource] | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        def make() -> asynchronous.VMPool:
            return asynchronous.VMPool(config, source=source, sources=sources, observers=observers)

        self._portal = portal()
        self._inner = self._portal.keep(self._portal.do(make))
        self.config = self._inner.config
        self.id = self._inner.id

    def __repr__(self) -> str:
        return repr(self._inner)

    def open(self) -> None:
        self._portal.call(self._inner.open())

    def close(self) -> None:
        self._portal.call(self._inner.aclose())

    def close_nowait(self) -> None:
        self._portal.do(self._inner.close_nowait)

    def __enter__(self) -> VMPool:
        self.open()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._portal.is_running:
            self.close()

    @property
    def is_closed(self) -> bool:
        return self._inner.is_closed

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Have `observer` called with every further event, in the event loop's thread; return what ends that."""
        end = self._portal.do(lambda: self._inner.observe(observer))
        return lambda: self._portal.do(end)

    @contextmanager
    def acquire(
        self,
        timeout: float | None = None,
        *,
        template: str = DEFAULT,
        priority: int = 0,
        lease_ttl: float | None = None,
    ) -> Iterator[Sandbox]:
        acquiring = self._inner.acquire(timeout, template=template, priority=priority, lease_ttl=lease_ttl)
        with self._portal.enter(acquiring) as vm:
            yield Sandbox(self._portal, vm)

    def claim(
        self,
        timeout: float | None = None,
        *,
        template: str = DEFAULT,
        priority: int = 0,
        lease_ttl: float | None = None,
    ) -> Lease:
        claiming = self._inner.claim(timeout, template=template, priority=priority, lease_ttl=lease_ttl)
        lease = self._portal.call(claiming, give_back=lambda lease: lease.release_nowait())
        return Lease(self._portal, lease)

    def run(
        self,
        code: str,
        *,
        language: str = "python",
        args: Sequence[GuestPath] = (),
        claim_timeout: float | None = None,
        **options: Unpack[RunOptions],
    ) -> Result:
        running = self._inner.run(code, language=language, args=args, claim_timeout=claim_timeout, **options)
        return self._portal.call(running)

    def wait_ready(self, size: int | None = None) -> None:
        self._portal.call(self._inner.wait_ready(size))

    def statistics(self, template: str | None = None) -> PoolStatistics:
        return self._portal.do(lambda: self._inner.statistics(template))

    def generations(self, template: str = DEFAULT) -> list[GenerationStatistics]:
        return self._portal.do(lambda: self._inner.generations(template))

    def roll_over(self, template: str = DEFAULT) -> int:
        return self._portal.call(self._inner.roll_over(template))

    def roll_back(self, template: str = DEFAULT) -> int:
        return self._portal.call(self._inner.roll_back(template))
