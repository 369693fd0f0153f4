"""The warm pool: keeps VMs ready, lends each to one caller once, and destroys it afterwards."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Unpack

import anyio
from anyio.to_thread import run_sync

from sandbox import arguments
from sandbox.arguments import GuestPath
from sandbox.config import PoolConfig, TemplateConfig
from sandbox.errors import ConfigError, PoolClosed, PoolTimeout, SandboxError, StateError, afresh
from sandbox.event import EventKind, Observer
from sandbox.guest.sandbox import RunOptions, check_run
from sandbox.handle import Handle
from sandbox.home import Home
from sandbox.log import log
from sandbox.observe.status import StatusFile
from sandbox.pool.broadcast import Broadcast
from sandbox.pool.keeper import Keeper
from sandbox.pool.lease import Lease
from sandbox.pool.shelf import Shelf
from sandbox.pool.statistics import GenerationStatistics, PoolStatistics, add_up
from sandbox.pool.succession import Succession
from sandbox.result import Result
from sandbox.template.template import Template
from sandbox.vm import VM, VMSource

DEFAULT = "default"


class VMPool(Handle):
    """A pool of fresh VMs, all clones of one template, or of a few.

        async with VMPool(PoolConfig(min_size=4)) as pool:
            async with pool.acquire() as vm:
                result = await vm.run("print(6 * 7)", timeout=10)

    Every VM is lent at most once and destroyed at the end of its lease. At most `max_size` exist at any instant.
    The pool may be opened in one task and closed in another. When it is closed, leased VMs are destroyed too.
    """

    def __init__(
        self,
        config: PoolConfig | None = None,
        *,
        source: VMSource | None = None,
        sources: Mapping[str, VMSource] | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        """Make a pool, not yet open. `source` and `sources` replace templates of `config` by other sources of VMs.

        Each of `observers` is called with every `LifeEvent` of the pool, in the event loop's thread.
        """
        self.config = PoolConfig() if config is None else arguments.one_of("config", config, PoolConfig)
        self.id = secrets.token_hex(4)
        """Names this pool in events."""
        self._broadcast = Broadcast(self.id, arguments.calls("observers", observers), end_vm=self._end_vm)
        self._keeper = Keeper(self.config, self._broadcast)
        self._sources = _sources(source, sources, self._wanted())
        self._was_opened = False
        self._home: Home | None = None

    def __repr__(self) -> str:
        state = self.statistics()
        return (
            f"<VMPool {'open' if self._keeper.is_started else 'closed'} ready={state.ready} leased={state.leased} "
            f"starting={state.starting} ending={state.ending} waiting={state.waiting}>"
        )

    async def open(self) -> None:
        """Prepare the templates (build and bake them if need be) and begin to fill the pool; does not wait for VMs."""
        if self._was_opened or self._keeper.is_closing:
            raise StateError("this pool was opened before; make a new one")
        self._was_opened = True
        self._home = Home()
        for name, (template, min_size) in self._wanted().items():
            self._keeper.add(name, self._sources.get(name) or await self._ensure(template), min_size)
        await run_sync(log.prepare)
        if self._keeper.is_closing:
            raise PoolClosed("the pool was closed while it was opened")
        self._keeper.start()
        self._broadcast.add(StatusFile(self.id, self.config.host.runtime_dir, self.statistics))
        self._broadcast.tell(EventKind.POOL_OPENED, min_size=self.config.min_size, max_size=self.config.max_size)

    def _wanted(self) -> dict[str, tuple[TemplateConfig, int]]:
        more = {name: (target.template, target.min_size) for name, target in self.config.more.items()}
        return {DEFAULT: (self.config.template, self.config.min_size), **more}

    async def _ensure(self, config: TemplateConfig) -> VMSource:
        template = await Template.ensure(config, self.config.host)
        return template.warmed() if self.config.warm_up else template

    async def aclose(self) -> None:
        """Refuse new claims, destroy every VM, leased ones too, and return when all are gone. May be called twice."""
        self._check_home()
        self.close_nowait()
        await self._keeper.wait_over()

    def close_nowait(self) -> None:
        """Begin to close and return at once: nothing is lent or started any more, and every VM ends."""
        self._keeper.close()

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Have `observer` called with every further event; return a function that ends that."""
        return self._broadcast.add(arguments.call("observer", observer))

    @property
    def is_closed(self) -> bool:
        """Whether it was closed and every VM of it is gone."""
        return self._keeper.is_over

    async def __aenter__(self) -> VMPool:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def acquire(
        self,
        timeout: float | None = None,
        *,
        template: str = DEFAULT,
        priority: int = 0,
        lease_ttl: float | None = None,
    ) -> AsyncIterator[VM]:
        """Lend a VM for the length of the context; see `claim` for what is raised and what the arguments mean."""
        async with await self.claim(timeout, template=template, priority=priority, lease_ttl=lease_ttl) as vm:
            yield vm

    def lease(self) -> Any:
        """The pool as a source of VMs: `acquire` without a time-out."""
        return self.acquire()

    async def claim(
        self,
        timeout: float | None = None,
        *,
        template: str = DEFAULT,
        priority: int = 0,
        lease_ttl: float | None = None,
    ) -> Lease:
        """Return a lease on a ready VM, or wait in a fair queue of callers until one is there.

        A higher `priority` goes first; one step is worth `priority_seconds` of waiting, so nobody starves. The lease
        ends by itself after `lease_ttl` seconds (by default the pool's). Raises `PoolTimeout` after `timeout` seconds,
        `PoolBusy` when too many wait, `PoolClosed` when the pool closes meanwhile, `HostResources` when the host is
        full, and the cause when VMs fail to start time after time. If cancelled, nothing is lost.
        """
        if timeout is not None:
            timeout = arguments.patience("timeout", timeout)
        # Skip the checks of defaults: they would be a noticeable part of a claim that finds a warm VM.
        rank = 0.0 if type(priority) is int and not priority else arguments.priority("priority", priority)
        ttl = self.config.lease_ttl if lease_ttl is None else arguments.seconds("lease_ttl", lease_ttl)
        self._check_open()
        shelf = self._shelf(template)
        started = shelf.now()
        if (lease := shelf.take(ttl)) is None:
            lease = await self._wait_for_lease(shelf, timeout, rank, ttl)
            stage = {"queue": shelf.now() - started, "claim": 0.0}
        else:
            stage = {"queue": 0.0, "claim": shelf.now() - started}
        lease.vm.timings = {**lease.vm.timings, **stage}
        return lease

    async def _wait_for_lease(
        self, shelf: Shelf, timeout: float | None, priority: float, lease_ttl: float | None
    ) -> Lease:
        since = shelf.now()
        try:
            return await self._wait_in_queue(shelf, timeout, priority, lease_ttl)
        except BaseException as error:
            code = error.code if isinstance(error, SandboxError) else type(error).__name__
            fields = {"error": str(error), "code": code}
            self._broadcast.tell(EventKind.CLAIM_REFUSED, template=shelf.name, seconds=shelf.now() - since, **fields)
            raise

    async def _wait_in_queue(
        self, shelf: Shelf, timeout: float | None, priority: float, lease_ttl: float | None
    ) -> Lease:
        request = shelf.enqueue(priority, lease_ttl)
        self._keeper.look_again()
        try:
            with anyio.move_on_after(timeout):
                await request.answered.wait()
        except BaseException:
            if request.lease is not None:
                request.lease.release_nowait()
            raise
        finally:
            shelf.queue.remove(request)
        if request.error is not None:
            raise afresh(request.error)
        if request.lease is None:
            raise PoolTimeout(self._why_late(shelf, timeout))
        return request.lease

    async def run(
        self,
        code: str,
        *,
        language: str = "python",
        args: Sequence[GuestPath] = (),
        claim_timeout: float | None = None,
        **options: Unpack[RunOptions],
    ) -> Result:
        """Run code in a VM of its own and return the result; the VM is destroyed. See `claim` and `Sandbox.run`."""
        check_run(code, language, args, options)
        patience = arguments.given(arguments.patience, "claim_timeout", claim_timeout)
        async with self.acquire(patience) as vm:
            return await vm.run(code, language=language, args=args, **options)

    async def wait_ready(self, size: int | None = None) -> None:
        """Return when `size` VMs (by default every `min_size`) are ready; raise the cause if they fail to start.

        Raises `ConfigError` for more than the pool ever keeps ready.
        """
        self._check_home()
        sizes = [low for _, low in self._wanted().values()]
        wanted = sum(sizes) if size is None else arguments.count("size", size)
        most = min(self.config.max_size, sum(max(low, self.config.max_ready or 0) for low in sizes))
        if wanted > most:
            raise ConfigError(f"this pool keeps {most} VMs ready at most, not {wanted}; raise min_size or max_ready")
        while self.statistics().ready < wanted:
            if self._keeper.is_closing:
                raise PoolClosed("the pool was closed while it was filling")
            for shelf in self._keeper.shelves.values():
                if shelf.is_broken and shelf.last_failure is not None:
                    raise afresh(shelf.last_failure)
            await self._keeper.changed.wait()

    def statistics(self, template: str | None = None) -> PoolStatistics:
        """Return the counters and the present state, of one template or of all."""
        shelves = self._keeper.shelves.values() if template is None else [self._shelf(template)]
        return add_up((shelf.census(), shelf.count) for shelf in shelves)

    def generations(self, template: str = DEFAULT) -> list[GenerationStatistics]:
        """Return how many VMs of each generation of a template exist now, the live one first."""
        return self._shelf(template).generations()

    async def roll_over(self, template: str = DEFAULT) -> int:
        """Bake the next generation of a template now, try it, start new VMs from it; return its number.

        The pool does so by itself when the template has drifted. Warm VMs are replaced as new ones become ready, leases
        are not touched. Raises `TemplateError` or another `StartError` when the next generation cannot be made or is no
        good, and `PoolClosed` when the pool closes meanwhile; the pool then stays as it is. Cancelling the wait does
        not end the roll-over.
        """
        return await self._succession(template).roll_over()

    async def roll_back(self, template: str = DEFAULT) -> int:
        """Start new VMs from the former generation again, at once; return its number.

        What is warm is replaced as in `roll_over`. The pool does not return to the generation that it left by itself,
        only to another one, or when `roll_over` is called. Raises `TemplateError` when no former one can be used.
        """
        return await self._succession(template).roll_back()

    def _end_vm(self, name: str) -> bool:
        return self._keeper.end_vm(name)

    def _check_home(self) -> None:
        if self._home is not None:
            self._home.check(self)

    def _check_open(self) -> None:
        self._check_home()
        if not self._keeper.is_started or self._keeper.is_closing:
            raise PoolClosed("the pool is not open; use `async with VMPool(...)`")

    def _shelf(self, template: object) -> Shelf:
        if not isinstance(template, str) or template not in self._keeper.shelves:
            has = ", ".join(self._keeper.shelves) or "none before it is opened"
            raise ConfigError(f"the pool has no template {template!r}; it has {has}")
        return self._keeper.shelves[template]

    def _succession(self, template: str) -> Succession:
        self._check_open()
        self._shelf(template)
        if template not in self._keeper.successions:
            raise StateError(f"the source of {template!r} has no generations; only templates do")
        return self._keeper.successions[template]

    def _why_late(self, shelf: Shelf, timeout: float | None) -> str:
        state = self.statistics()
        said = f"no VM came free within {timeout:g} s" if timeout is not None else "no VM came free"
        said += f": {state.leased} of at most {self.config.max_size} are leased, {state.starting} are starting"
        said += f", {len(shelf.queue)} more callers wait"
        if shelf.last_failure is not None:
            said += f"; the last start failed: {shelf.last_failure}"
        return said + "; raise max_size or the time-out"


def _sources(
    source: VMSource | None, sources: Mapping[str, VMSource] | None, wanted: Mapping[str, object]
) -> dict[str, VMSource]:
    """Check the sources that a caller gives instead of templates of the configuration."""
    if sources is not None and not isinstance(sources, Mapping):
        raise ConfigError(f"sources is a {type(sources).__name__}; give a mapping of template names to sources")
    found = dict(sources or {}) | ({DEFAULT: source} if source is not None else {})
    for name, one in found.items():
        if name not in wanted:
            raise ConfigError(f"a source is given for the template {name!r}; the pool has {', '.join(wanted)}")
        if not callable(getattr(one, "lease", None)):
            raise ConfigError(f"the source of {name!r} is a {type(one).__name__}; give an object with `lease()`")
    return found
