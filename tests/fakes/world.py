"""A world of VMs that are only counted: what a pool sees of a hypervisor, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count

import anyio

from sandbox.errors import HostResources, StartError
from sandbox.result import Outcome, Result


class FakeVM:
    """As much of a VM as a pool looks at."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.is_paused = False
        self.timings: Mapping[str, float] = {}
        self.times_leased = 0
        self.used_at = anyio.current_time()
        self.receipt = None
        self.origin = "boot"
        self.can_run = True
        self.generation = 0
        self.pid = 0
        self.loss = None
        self._on_lost: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<FakeVM {self.name} {'alive' if self.is_alive else 'dead'}>"

    @property
    def idle_seconds(self) -> float:
        return anyio.current_time() - self.used_at

    async def run(self, code: str, *, timeout: float) -> Result:
        """Do the only sum that anybody asks of a fake."""
        assert (code, timeout > 0) == ("print(6 * 7)", True)
        await anyio.sleep(0.01)
        said = b"42\n" if self.can_run else b""
        return Result(Outcome.EXITED, 0, None, said, b"", stdout_bytes=len(said), stderr_bytes=0, duration=0.01)

    async def pause(self) -> None:
        assert not self.is_paused
        await anyio.sleep(0.003)
        self.is_paused = True

    async def resume(self) -> None:
        assert self.is_paused
        await anyio.sleep(0.006)
        self.is_paused = False

    def call_when_lost(self, callback: Callable[[], None]) -> None:
        if self.is_alive:
            self._on_lost.append(callback)
        else:
            callback()

    def call_on_executions(self, callback: Callable[[object], None]) -> None:
        """Nothing ever runs in a fake."""

    def adopt(self, config: object) -> None:
        """Nothing ever runs in a fake."""

    def release(self, said: str) -> None:
        """Nobody asks anything of a fake whose lease has ended."""

    def die(self) -> None:
        """End as a QEMU that was killed: everybody is told at once."""
        self.is_alive = False
        callbacks, self._on_lost = self._on_lost, []
        for callback in callbacks:
            callback()


class FakeWorld:
    """A source of such VMs that knows which exist. Starts may be made to fail."""

    def __init__(self, *, start_seconds: float = 0.2, end_seconds: float = 0.02) -> None:
        self.start_seconds = start_seconds
        self.end_seconds = end_seconds
        self.fail_next = 0
        self.room: int | None = None
        """Where so many VMs live already, the host has no memory for another."""
        self.alive: set[FakeVM] = set()
        self.started = 0
        self.most_alive = 0
        self._numbers = count(1)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[FakeVM]:
        """Give one VM for the length of the context."""
        self.started += 1
        if self.room is not None and len(self.alive) >= self.room:
            raise HostResources("the world is full")
        await anyio.sleep(self.start_seconds)
        if self.fail_next > 0:
            self.fail_next -= 1
            raise StartError("the world lets this start fail")
        vm = FakeVM(f"fake-{next(self._numbers)}")
        self.alive.add(vm)
        self.most_alive = max(self.most_alive, len(self.alive))
        try:
            yield vm
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(self.end_seconds)
            finally:  # asyncio's own cancellation knows no shield: a thread would see to the end
                vm.is_alive = False
                self.alive.discard(vm)
