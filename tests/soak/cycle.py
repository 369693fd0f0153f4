"""One cycle of a soak: claim, run, files, release, with at most one fault in it, and a check of every answer."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import dataclass, field

import anyio

from sandbox.errors import GuestLost
from sandbox.pool.lease import Lease
from sandbox.pool.pool import VMPool
from sandbox.result import Outcome
from sandbox.vm import VM
from tests.soak.faults import Fault, Victims, draw

CLAIM_SECONDS = 120.0
RUN_SECONDS = 60.0
STOP_SECONDS = 0.3
_TRANSFER_BYTES = 4 * 1024 * 1024
_BY_FILES = """
data = open("in", "rb").read()
open("out", "wb").write(data[::-1])
print({x} * {y}, sum(data))
"""
_BY_STREAMS = """
import sys
data = sys.stdin.buffer.read()
sys.stdout.buffer.write(data[::-1])
print({x} * {y}, sum(data), file=sys.stderr)
"""


class WrongResult(AssertionError):
    """The sandbox answered, and not the truth."""


@dataclass
class Account:
    """What became of every cycle, and of every lease."""

    cycles: int = 0
    leases: int = 0
    lost: int = 0
    """Leases whose VM was gone when they ended: each of them because of a fault of ours."""
    cancelled: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class Cycle:
    """The cycle with this number of the soak with this seed."""

    def __init__(self, seed: int, number: int, pool: VMPool, victims: Victims, account: Account) -> None:
        self._number = number
        self._source = random.Random(f"{seed}:{number}")
        self._pool = pool
        self._victims = victims
        self._account = account
        self._fault = draw(self._source)

    async def run(self) -> None:
        """Go through it; whatever is not as it must be is noted in the account."""
        self._account.faults[self._fault] = self._account.faults.get(self._fault, 0) + 1
        try:
            await self._claim_and_use()
        except Exception as error:  # noqa: BLE001 - the soak goes on; its verdict is that it failed
            self._account.wrong.append(f"cycle {self._number} ({self._fault}): {type(error).__name__}: {error}")
        self._account.cycles += 1

    async def _claim_and_use(self) -> None:
        if self._fault is Fault.CANCEL_CLAIM:
            with anyio.move_on_after(self._source.uniform(0, 0.3)) as scope:
                await self._hold(await self._pool.claim(CLAIM_SECONDS))
            self._account.cancelled += scope.cancelled_caught
            return
        if self._fault in (Fault.KILL_WARM, Fault.STOP_AND_KILL_WARM):
            await self._strike_warm()
        await self._hold(await self._pool.claim(CLAIM_SECONDS))

    async def _hold(self, lease: Lease) -> None:
        self._account.leases += 1
        vm = lease.vm
        try:
            async with lease:
                await self._use(vm)
                if self._fault is Fault.KILL_RELEASE:
                    lease.release_nowait()
                    self._victims.signal(vm.name, vm.pid, signal.SIGKILL)
                if self._fault is Fault.RELEASE_TWICE:
                    await lease.release()
        except GuestLost:
            if vm.name not in self._victims.names:
                raise
        finally:
            self._account.lost += lease._slot.why == "lost"

    async def _use(self, vm: VM) -> None:
        match self._fault:
            case Fault.KILL_IDLE:
                self._victims.signal(vm.name, vm.pid, signal.SIGKILL)
                await _must_be_lost(vm.run("print(1)", timeout=RUN_SECONDS))
            case Fault.KILL_RUNNING:
                await _must_be_lost(self._struck(vm, vm.run("while True: pass", timeout=RUN_SECONDS)))
            case Fault.KILL_TRANSFER:
                data = self._source.randbytes(_TRANSFER_BYTES)
                await _must_be_lost(self._struck(vm, vm.write_file("large", data), longest=0.02))
            case Fault.STOP_RUNNING:
                self._victims.signal(vm.name, vm.pid, signal.SIGSTOP)
                result = await vm.run("print(1)", timeout=STOP_SECONDS)
                _expect(result.timed_out and not vm.is_alive, f"a stopped VM gave {result.describe()}")
            case Fault.POWER_OFF:
                self._victims.names.add(vm.name)
                off = "import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)"
                await _must_be_lost(vm.run(off, user="root", timeout=RUN_SECONDS))
            case Fault.TIME_OUT:
                result = await vm.run("while True: pass", timeout=0.2)
                _expect(result.outcome is Outcome.TIMED_OUT, f"an endless program gave {result.describe()}")
                await self._work(vm)
            case Fault.CANCEL_RUN:
                with anyio.move_on_after(self._source.uniform(0, 0.2)) as scope:
                    await vm.run("import time; time.sleep(60)", timeout=RUN_SECONDS)
                _expect(scope.cancelled_caught, "a cancelled run returned")
                self._account.cancelled += 1
                await self._work(vm)
            case _:
                await self._work(vm)

    async def _work(self, vm: VM) -> None:
        """Send data, have it read, reversed and summed up, fetch the answer; all of it must be right.

        Either by files or by the standard streams. The programs import nothing large: under emulation that would cost
        more than all the rest of a cycle.
        """
        data = self._source.randbytes(self._source.randrange(1, 65536))
        x, y = self._source.randrange(1 << 32), self._source.randrange(1 << 32)
        expected = f"{x * y} {sum(data)}\n"
        if self._source.random() < 0.5:
            await vm.write_file("in", data)
            result = await vm.run(_BY_FILES.format(x=x, y=y), timeout=RUN_SECONDS)
            _expect(result.ok and result.text == expected, f"wrong output: {result.describe()}")
            _expect(await vm.read_file("out") == data[::-1], "wrong file")
        else:
            result = await vm.run(_BY_STREAMS.format(x=x, y=y), stdin=data, timeout=RUN_SECONDS)
            right = result.ok and result.stdout == data[::-1] and result.stderr == expected.encode()
            _expect(right, f"wrong streams: {result.describe()}")

    async def _struck(self, vm: VM, work: object, longest: float = 0.1) -> None:
        """Do the work and kill its VM some moments later."""
        handle = asyncio.get_running_loop().call_later(
            self._source.uniform(0, longest), self._victims.signal, vm.name, vm.pid, signal.SIGKILL
        )
        try:
            await work  # type: ignore[misc]
        finally:
            handle.cancel()

    async def _strike_warm(self) -> None:
        victim = self._victims.pick(self._pool, self._source)
        if victim is None:
            return
        if self._fault is Fault.STOP_AND_KILL_WARM:
            self._victims.signal(*victim, signal.SIGSTOP)
            await anyio.sleep(self._source.uniform(0, 0.2))
        self._victims.signal(*victim, signal.SIGKILL)


def _expect(is_right: bool, otherwise: str) -> None:
    if not is_right:
        raise WrongResult(otherwise)


async def _must_be_lost(work: object) -> None:
    try:
        await work  # type: ignore[misc]
    except GuestLost:
        return
    raise WrongResult("a VM that was killed gave an answer")
