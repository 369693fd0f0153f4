"""Looks for QEMUs that somebody has stopped: they look alive, and would keep whoever gets them waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio
from anyio.to_thread import run_sync

from sandbox.errors import HostResources
from sandbox.hypervisor.process import stopped
from sandbox.hypervisor.threads import telling_shortage
from sandbox.log import log
from sandbox.vm import VM

LOOK_SECONDS = 2.5


class Health:
    """A VM whose QEMU is found stopped twice in a row is lost, leased or not."""

    def __init__(self, vms: Callable[[], Iterable[VM]]) -> None:
        self._vms = vms
        self._scope = anyio.CancelScope()

    async def serve(self) -> None:
        """Look from time to time until `stop`."""
        suspects: set[int] = set()
        with self._scope:
            while True:
                await anyio.sleep(LOOK_SECONDS)
                vms = {vm.pid: vm for vm in self._vms() if vm.pid}
                try:
                    with telling_shortage():
                        found = await run_sync(stopped, list(vms)) if vms else set()
                except HostResources as error:
                    log.warning("vms_not_looked_at", error=str(error))
                    continue
                for pid in found & suspects:
                    vms[pid].declare_stopped()
                suspects = found

    def stop(self) -> None:
        self._scope.cancel()
