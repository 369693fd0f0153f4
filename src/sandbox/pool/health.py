"""Looks for QEMUs that somebody has stopped: they look alive, and would keep whoever gets them waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio
from anyio.to_thread import run_sync

from sandbox.hypervisor.process import stopped
from sandbox.pool.broadcast import Broadcast
from sandbox.pool.supervision import supervise
from sandbox.vm import VM

LOOK_SECONDS = 2.5


class Health:
    """A VM whose QEMU is found stopped twice in a row is lost, leased or not."""

    def __init__(self, vms: Callable[[], Iterable[VM]], broadcast: Broadcast) -> None:
        self._vms = vms
        self._broadcast = broadcast
        self._suspects: set[int] = set()
        self._scope = anyio.CancelScope()

    async def serve(self) -> None:
        """Look from time to time until `stop`."""
        with self._scope:
            await supervise("the look for stopped VMs", self._look, self._broadcast)

    async def _look(self) -> None:
        await anyio.sleep(LOOK_SECONDS)
        suspects, self._suspects = self._suspects, set()
        vms = {vm.pid: vm for vm in self._vms() if vm.pid}
        found = await run_sync(stopped, list(vms)) if vms else set()
        for pid in found & suspects:
            vms[pid].declare_stopped()
        self._suspects = found

    def stop(self) -> None:
        self._scope.cancel()
