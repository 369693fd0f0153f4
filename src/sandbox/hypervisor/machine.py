"""One virtual machine: its process, its channel, its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from sandbox.errors import HostResources
from sandbox.hypervisor import threads
from sandbox.hypervisor.console import Console
from sandbox.hypervisor.process import Process
from sandbox.hypervisor.stream import SocketStream
from sandbox.log import log

if TYPE_CHECKING:
    from sandbox.hypervisor.host import Hypervisor

DESTROY_SECONDS = 10.0
_BURY_SECONDS = 60.0


class Machine:
    """A running VM. Whoever holds it must call `destroy`, whatever else happens."""

    def __init__(self, host: Hypervisor, name: str, process: Process, stream: SocketStream, console: Console) -> None:
        self.name = name
        self.process = process
        self.stream = stream
        self.console = console
        self.accelerator = host.platform.accelerator
        self._host = host
        self._is_destroyed = False

    def __repr__(self) -> str:
        return f"<Machine {self.name} pid={self.process.pid} {'alive' if self.is_alive else 'dead'}>"

    @property
    def is_alive(self) -> bool:
        """Whether the QEMU process exists. That the guest works only an answer from it can tell."""
        return self.process.is_alive

    @property
    def oom_kills(self) -> int | None:
        """How often the host's kernel has killed its QEMU for want of memory; None where it cannot be told."""
        return self._host.groups.oom_kills(self.name)

    async def save(self, state: Path) -> None:
        """Stop the machine for good and write its device state to `state`."""
        await self._host.save(self.name, state)

    async def pause(self) -> None:
        """Stop its processors: it then costs memory only."""
        await self._host.pause(self.name)

    async def resume(self) -> None:
        """Let its processors run again. Its clocks have stood still."""
        await self._host.call(self._host.connection.resume, self.name)

    async def destroy(self) -> None:
        """Return once the process is dead and reaped; libvirt drops its record of it within 0.2 s more.

        Cannot be cancelled; has its own deadline; may be called twice. The kill itself is immediate and synchronous.
        """
        if self._is_destroyed:
            return
        self._is_destroyed = True
        may_kill = self.process.kill()
        self.stream.close()
        self.console.close()
        is_forgotten = False
        with anyio.CancelScope(shield=True):
            try:
                with anyio.move_on_after(DESTROY_SECONDS) as scope:
                    if not may_kill:
                        await self._host.call(self._host.connection.destroy, self.name)
                    await self.process.wait_dead()
                    await self._host.call(self._forget)
                    is_forgotten = True
                if scope.cancelled_caught:
                    log.error("vm_destroy_overdue", vm=self.name, pid=self.process.pid, seconds=DESTROY_SECONDS)
            except HostResources as error:  # a lack of threads changes nothing of what the VM did
                log.warning("vm_end_delayed", vm=self.name, error=str(error))
            finally:  # asyncio's own cancellation knows no shield: what is left to do, a thread does
                if is_forgotten:
                    self.process.close()
                else:
                    threads.soon(self._bury)

    def _forget(self) -> None:
        """In a thread: to collect a dead process has been seen to take the kernel some 50 ms."""
        self.process.reap()
        self._host.forget_blocking(self.name)

    def _bury(self) -> None:
        self.process.wait_dead_blocking(_BURY_SECONDS)
        self.process.close()
        self._host.forget_blocking(self.name)
