"""A VM that is ready: a machine, a verified conversation with its agent, and its end."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Protocol

from sandbox.certificate import Cause
from sandbox.config import PoolConfig
from sandbox.errors import GuestLost, StartError, StateError
from sandbox.guest.client import GuestClient
from sandbox.guest.execution import Execution
from sandbox.guest.identity import Identity, Origin, Receipt
from sandbox.guest.sandbox import Sandbox
from sandbox.guest.verdict import lost
from sandbox.hypervisor.machine import Machine
from sandbox.trace.stage import stage

READY_SECONDS = 30.0
BOOT_SECONDS = 120.0
_PARTING_SECONDS = 0.5
"""QEMU closes the channel a moment before it ends: so long its end is awaited, because it tells why."""
_LAST_WORDS_SECONDS = 2.0
"""When QEMU ends first, what it had sent is handled, for this long at most."""


class VMSource(Protocol):
    """Where VMs come from: a cold boot, a template, a pool of another source."""

    def lease(self) -> AbstractAsyncContextManager[VM]:
        """Give one fresh VM for the length of the context; destroy it afterwards, whatever happened."""
        ...


class VM(Sandbox):
    """One fresh virtual machine: a sandbox, and what is known of the machine that it is the inside of."""

    def __init__(self, machine: Machine, client: GuestClient, languages: Sequence[str]) -> None:
        super().__init__(client, languages)
        self._machine = machine
        self._on_lost: list[Callable[[], None]] = []
        self._proof: Receipt | None = None
        self._series: str | None = None
        self._generation: int | None = None
        self._baked_at = 0.0
        self.origin: Origin = "boot"
        """How it came to its present caller; see `Receipt`."""
        self.is_lent = False
        """Whether a source has given it to a caller: it can never become a template then."""

    def __repr__(self) -> str:
        return f"<VM {self.name} {'alive' if self.is_alive else 'dead'}>"

    @property
    def name(self) -> str:
        """The machine's name in libvirt, on QEMU's command line and in logs."""
        return self._machine.name

    @property
    def pid(self) -> int:
        """Process id of its QEMU."""
        return self._machine.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether QEMU runs and the conversation with the guest is unbroken."""
        return self._client.is_open and self._client.lost is None and self._machine.is_alive

    @property
    def timings(self) -> Mapping[str, float]:
        """Seconds by stage of its making; every `Result` has them, too."""
        return self._client.timings

    @timings.setter
    def timings(self, timings: Mapping[str, float]) -> None:
        self._client.timings = timings

    @property
    def receipt(self) -> Receipt | None:
        """What it has proved of its identity, and where it comes from; None before it was ready."""
        if self._proof is None:
            return None
        return replace(
            self._proof,
            origin=self.origin,
            series=self._series,
            generation=self._generation,
            template_age=None if self._series is None else max(0.0, self._proof.proved_at - self._baked_at),
            timings=dict(self.timings),
            accelerator=self._machine.accelerator,
        )

    def tell_template(self, series: str, generation: int, baked_at: float) -> None:
        """Say which template it is a clone of; `baked_at` is by the monotonic clock."""
        self._series, self._generation, self._baked_at, self.origin = series, generation, baked_at, "restore"

    @property
    def idle_seconds(self) -> float:
        """Seconds since something last ran in it or was asked of it; 0 while something runs."""
        return self._client.idle_seconds

    def call_when_lost(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when the VM dies or its channel breaks; at once if it has."""
        if self.is_alive:
            self._on_lost.append(callback)
        else:
            callback()

    def call_on_executions(self, callback: Callable[[Execution], None]) -> None:
        """Have `callback` called with each execution when it has been sent and when it has ended."""
        self._client.on_execution = callback

    @property
    def loss(self) -> GuestLost | None:
        """Why the VM was lost, or None."""
        return self._client.lost

    def console(self) -> str:
        """Return the last 64 KiB that the guest's kernel and init have printed."""
        return self._machine.console.text()

    async def pause(self) -> None:
        """Stop the machine: it then costs no processor time. Nothing may run in it."""
        await self._machine.pause()

    async def resume(self) -> None:
        """Let the machine run again; return when its clock is right and its randomness fresh, as after a restore."""
        await self._machine.resume()
        assert self._proof is not None
        names = self._proof
        identity = Identity(hostname=self.name, machine_id=names.machine_id, boot_id=names.boot_id)
        self._proof = await self._client.handshake(identity, READY_SECONDS, is_cold=False)

    async def prepare(self, timeout: float) -> None:
        """Have the guest do ahead what takes time before a snapshot. Raises `StateError` as `quiesce` does."""
        self._must_be_unused()
        await self._client.prepare(timeout)

    async def quiesce(self, timeout: float) -> None:
        """Bring the guest to rest for a snapshot; afterwards it takes nothing but a new identity.

        That is quick where `prepare` came just before. Raises `StateError` for a VM that a source has given to a
        caller: what somebody has used is never frozen.
        """
        self._must_be_unused()
        await self._client.quiesce(timeout)

    def _must_be_unused(self) -> None:
        if self.is_lent:
            raise StateError(f"{self.name} was lent: only a machine that nobody has used can become a template")

    def declare_stopped(self) -> None:
        """Give it up because its QEMU was found stopped: nothing in it goes on, and nothing would say so."""
        said = f"the QEMU of {self.name} was stopped by a signal, on the host; the VM is destroyed"
        self._client.close(lost(Cause.UNRESPONSIVE, said))

    def adopt(self, config: PoolConfig) -> None:
        """Take a pool's defaults for what its caller runs."""
        self.set_defaults(timeout=config.exec_timeout, idle_timeout=config.exec_idle_timeout, limits=config.limits)
        self._client.kill_patience = config.kill_patience

    def release(self, said: str) -> None:
        """Refuse further calls with `StateError`, and end what runs: the lease has ended, which `said` states."""
        self._client.release(said)

    def on_lost(self) -> None:
        """Whatever broke first, machine or conversation: end the other, tell everybody once."""
        self._machine.process.kill()
        callbacks, self._on_lost = self._on_lost, []
        for callback in callbacks:
            callback()


@asynccontextmanager
async def open_vm(
    machine: Machine, *, ready_seconds: float, languages: Sequence[str] = ("python", "bash")
) -> AsyncIterator[VM]:
    """Take ownership of a running machine, renew its identity, give it as a VM, and destroy it in the end.

    Raises `StartError` when the guest does not confirm its identity in time; the machine is then destroyed.
    """
    loop = asyncio.get_running_loop()
    pidfd = machine.process.fileno()
    client: GuestClient | None = None
    try:
        machine.console.start_receiving()
        client = GuestClient(
            machine.stream,
            name=machine.name,
            on_lost=lambda _: vm.on_lost(),
            on_closed=lambda: part(),  # noqa: PLW0108 - it comes later
        )
        client.accelerator = machine.accelerator
        vm = VM(machine, client, languages)

        death: GuestLost | None = None

        def on_death() -> None:
            nonlocal death
            loop.remove_reader(pidfd)
            machine.process.reap()
            death = _death(machine)
            if client.is_open:  # what it had said before is handled first, up to the end of the channel
                loop.call_later(_LAST_WORDS_SECONDS, client.close, death)
            else:
                client.close(death)

        def part() -> None:
            if death is not None:
                client.close(death)
                return
            broke = lost(Cause.CHANNEL, f"the channel to the VM {machine.name} broke while its QEMU ran")
            loop.call_later(_PARTING_SECONDS, client.close, broke)

        loop.add_reader(pidfd, on_death)
        started = time.monotonic()
        try:
            with stage("renew the identity"):
                vm._proof = await client.handshake(Identity(hostname=machine.name), ready_seconds)
        except GuestLost as error:
            said = machine.console.last_line()
            said = f"{error}; its console ends with: {said}" if said else str(error)
            raise StartError(f"the guest of {machine.name} did not become ready: {said}") from error
        vm.timings = {"ready": time.monotonic() - started}
        yield vm
    finally:
        loop.remove_reader(pidfd)
        if client is not None:  # whoever still waits for an execution hears of the end
            client.release(f"the lease on {machine.name} has ended: its VM is destroyed")
        with stage("destroy the VM"):
            await machine.destroy()


def _death(machine: Machine) -> GuestLost:
    """Return why a QEMU process ended, as far as its exit status and the guest's console tell."""
    machine.console.drain()
    status, last = machine.process.exit_status, machine.console.last_line()
    gone = f"the VM {machine.name} has ended"
    if status is None:
        return lost(Cause.QEMU_KILLED, f"{gone}: its QEMU process is gone", console=last)
    if status == -signal.SIGKILL and (kills := machine.oom_kills):
        said = f"{gone}: the host's kernel killed its QEMU for want of memory; give the host more, or start fewer VMs"
        return lost(Cause.HOST_OUT_OF_MEMORY, said, qemu_signal=-status, host_oom_kills=kills, console=last)
    if status < 0:
        said = f"{gone}: its QEMU was killed by signal {-status}, on the host"
        return lost(Cause.QEMU_KILLED, said, qemu_signal=-status, console=last)
    if machine.console.has_panicked():
        said = f"{gone}: the guest's kernel panicked"
        return lost(Cause.KERNEL_PANIC, said, qemu_status=status, console=machine.console.panic_line())
    if status == 0:
        return lost(Cause.POWER_OFF, f"{gone}: the guest powered off or restarted", qemu_status=0, console=last)
    return lost(Cause.QEMU_FAILED, f"{gone}: its QEMU exited with {status}", qemu_status=status, console=last)


async def warm_up(vm: VM) -> None:
    """Run one throw-away script, so that the caller's first command meets warm caches."""
    try:
        result = await vm.run("print()", timeout=READY_SECONDS)
    except GuestLost as error:
        raise StartError(f"the guest of {vm.name} was lost in its warm-up: {error}") from error
    if not result.ok:
        raise StartError(f"the guest of {vm.name} cannot run a simple script: {result.describe()}")
