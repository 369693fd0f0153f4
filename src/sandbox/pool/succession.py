"""Keeps one shelf's template up to date: notices drift, has the next generation made and tried, rolls over."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable

import anyio

from sandbox.config import PoolConfig
from sandbox.errors import HostResources, PoolClosed, SandboxError, StateError, TemplateError, afresh
from sandbox.event import EventKind
from sandbox.log import log
from sandbox.pool.broadcast import Broadcast
from sandbox.pool.canary import try_canary
from sandbox.pool.policy import renewal_back_off
from sandbox.pool.shelf import Shelf
from sandbox.pool.supervision import contained, supervise
from sandbox.template.drift import Drift
from sandbox.vm import VMSource

_HARMLESS = {"image", "kernel", "agent", "age", "pin"}
"""Differences between a former generation and the wanted one that do not keep it from being restored."""

_AGAIN_SECONDS = 30.0


@runtime_checkable
class RenewableSource(VMSource, Protocol):
    """A source of VMs that may be succeeded by another one; `Template` says what each method means."""

    @property
    def generation(self) -> int: ...

    def kept(self) -> Any: ...

    async def drift(self, max_age: float | None) -> Drift | None: ...

    def is_wanted(self, wanted: str) -> bool: ...

    def successor(self, beyond: int) -> AbstractAsyncContextManager[Any]: ...

    async def former(self) -> Any: ...

    async def tidy(self) -> None: ...


class _Order:
    """A caller who wants the next generation now."""

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.generation = 0
        self.error: SandboxError | None = None


class Succession:
    """One shelf's generations. Its task is a child of the pool's owner and ends with it; a failure harms nothing."""

    def __init__(self, shelf: Shelf, config: PoolConfig, broadcast: Broadcast) -> None:
        self._shelf = shelf
        self._config = config
        self._broadcast = broadcast
        self._former: RenewableSource | None = None
        self._refused: RenewableSource | None = None
        """What was rolled back from: it is not returned to by itself."""
        self._beyond = 0
        """Generations up to this number were tried, or given up."""
        self._told: str | None = None
        self._failures = 0
        self._orders: list[_Order] = []
        self._served: list[_Order] = []
        self._asked = anyio.Event()
        self._scope = anyio.CancelScope()
        self._is_over = False
        self._urged: VMSource | None = None
        """The last source that could not be loaded: one such failure is enough to look at once."""
        self._is_urgent = False
        shelf.on_unloadable = self._on_unloadable

    @property
    def _live(self) -> RenewableSource:
        source = self._shelf.source
        assert isinstance(source, RenewableSource)
        return source

    async def serve(self) -> None:
        """Look after the template until `stop`; then whoever still waits for a roll-over is told."""
        try:
            with self._scope:
                await supervise("the look after the template", self._look_in_time, self._broadcast)
        finally:
            self._is_over = True
            self._answer([*self._served, *self._orders], PoolClosed("the pool was closed before it rolled over"))

    def stop(self) -> None:
        """Have `serve` end; a template that is being made is given up, and nothing of it is left."""
        self._scope.cancel()

    async def roll_over(self) -> int:
        """See `VMPool.roll_over`."""
        if self._is_over:
            raise PoolClosed("the pool is closed")
        order = _Order()
        self._orders.append(order)
        self._asked.set()
        await order.answered.wait()
        if order.error is not None:
            raise afresh(order.error)
        return order.generation

    async def roll_back(self) -> int:
        """See `VMPool.roll_back`."""
        live = self._live
        former = self._former or await live.former()
        drift = await former.drift(None)
        if drift is not None and (obstacles := set(drift.reasons) - _HARMLESS):
            said = ", ".join(sorted(obstacles))
            raise TemplateError(f"generation {former.generation} cannot be used any more: {said} changed since")
        if self._is_over:
            raise PoolClosed("the pool was closed before it rolled back")
        if self._shelf.source is not live:
            raise StateError("the pool rolled over while it was to be rolled back; look again, and ask again")
        self._refused = live
        self._beyond = max(self._beyond, live.generation)
        self._switch(former, "rolled back", 0.0)
        return int(former.generation)

    def _pause(self) -> float | None:
        interval = self._config.template_check_interval
        if interval is None and self._failures and self._urged is self._shelf.source:
            interval = _AGAIN_SECONDS  # no VM comes of the live template, so this is tried until there is another
        return None if interval is None else renewal_back_off(interval, self._failures)

    async def _look_in_time(self) -> None:
        self._asked = anyio.Event()
        if not (self._served or self._orders or self._is_urgent):
            with anyio.move_on_after(self._pause()):
                await self._asked.wait()
        self._served, self._orders = [*self._served, *self._orders], []
        self._is_urgent = False
        await self._look()

    async def _look(self) -> None:
        """Look once, and do what is due; whatever goes wrong is told, and tried again later."""
        try:
            with contained("the look after the template"):
                await self._renew(is_ordered=bool(self._served))
        except SandboxError as error:
            self._failures += 1
            if not isinstance(error, _CanaryFailed):
                self._tell(EventKind.TEMPLATE_BAKE_FAILED, **self._account(error))
            self._answer(self._served, error)
        else:
            self._failures = 0
            self._answer(self._served, None)
        self._served = []

    async def _renew(self, *, is_ordered: bool) -> None:
        live, began = self._live, self._shelf.now()
        drift = await live.drift(self._config.template_max_age)
        if not is_ordered and (drift is None or (self._was_refused(drift) and not drift.is_urgent)):
            return
        if drift is not None and drift.wanted != self._told:
            self._told = drift.wanted
            self._tell(EventKind.TEMPLATE_DRIFTED, generation=live.generation, reasons=drift.reasons)
        async with live.successor(self._beyond) as candidate:
            generation = candidate.source.generation
            if candidate.was_baked:
                seconds = self._shelf.now() - began
                self._tell(EventKind.TEMPLATE_BAKED, seconds, generation=generation)
            try:
                is_broken = drift is not None and "state" in drift.reasons
                slowdown = self._config.canary_slowdown
                await try_canary(candidate.source, None if is_broken else live, slowdown)
            except HostResources:  # says nothing of the candidate
                raise
            except SandboxError as error:
                self._beyond = max(self._beyond, generation)
                self._tell(EventKind.CANARY_FAILED, generation=generation, **self._account(error, 1))
                raise _CanaryFailed(str(error)) from error
            if self._shelf.source is not live:
                raise StateError("the pool was rolled back while its next template was made")
            source = await candidate.adopt()
        if self._shelf.source is not live:
            raise StateError("the pool was rolled back while its next template was published")
        self._refused = None
        self._switch(source, ", ".join(drift.reasons) if drift is not None else "ordered", self._shelf.now() - began)
        try:
            with contained("the removal of old templates"):
                await source.tidy()
        except SandboxError as error:
            log.warning("old_templates_not_removed", template=self._shelf.name, error=str(error))

    def _was_refused(self, drift: Drift) -> bool:
        return self._refused is not None and self._refused.is_wanted(drift.wanted)

    def _on_unloadable(self, source: VMSource) -> None:
        """QEMU cannot load the state of this source: if it is the live one, another is due now."""
        if source is self._shelf.source and source is not self._urged:
            self._urged = source
            self._is_urgent = True
            self._asked.set()

    def _switch(self, source: RenewableSource, why: str, seconds: float) -> None:
        former = self._live
        self._former, self._told = former, None
        self._shelf.replace_source(source)
        self._tell(
            EventKind.GENERATION_CHANGED, seconds, generation=source.generation, former=former.generation, why=why
        )

    def _answer(self, orders: list[_Order], error: SandboxError | None) -> None:
        for order in orders:
            order.generation, order.error = self._live.generation, error
            order.answered.set()

    def _account(self, error: SandboxError, more: int = 0) -> dict[str, Any]:
        return {"error": str(error), "code": error.code, "failures": self._failures + more}

    def _tell(self, kind: EventKind, seconds: float | None = None, **fields: Any) -> None:
        self._broadcast.tell(kind, template=self._shelf.name, seconds=seconds, **fields)


class _CanaryFailed(TemplateError):
    """The next generation was tried and is no good; it has been told."""
