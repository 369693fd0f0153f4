"""A libvirt daemon is stopped, killed, or ended and started again while a VM is leased; see `own_daemon`."""

import asyncio
import json
import signal
import sys
from contextlib import suppress

import own_daemon

from sandbox import HostConfig, PoolConfig, VMPool
from sandbox.errors import SandboxError

DAEMON = sys.argv[1]
FAULTS = sys.argv[2:]
async def answer(vm):
    try:
        return (await vm.run("print(6 * 7)", timeout=30)).text.strip()
    except SandboxError as error:
        return f"{error.code}: {error}"


async def restored(pool):
    """Return what a VM says that was made after all faults; starts that failed meanwhile are tried again ever later."""
    created = pool.statistics().created
    for _ in range(120):
        try:
            async with pool.acquire(timeout=15) as vm:
                said = await answer(vm)
                if pool.statistics().created >= created + 2:
                    return said
        except SandboxError as error:
            said = f"{error.code}: {error}"
        await asyncio.sleep(0.25)
    return said


async def main():
    own_daemon.prepare()
    daemon = own_daemon.begin(DAEMON)
    said = {}
    try:
        config = PoolConfig(min_size=1, max_size=3, warm_up=False, host=HostConfig(uri="qemu:///system"))
        async with VMPool(config) as pool:
            async with pool.acquire(timeout=60) as vm:
                said["before"] = await answer(vm)
                await pool.wait_ready()  # or else a start that is under way is met, and waits for its deadline
                for fault in FAULTS:
                    if fault == "hang":
                        daemon.send_signal(signal.SIGSTOP)
                    else:
                        await asyncio.to_thread(own_daemon.end, daemon, {"kill": signal.SIGKILL, "restart": signal.SIGTERM}[fault])
                    during = await answer(vm)
                    if fault == "hang":
                        daemon.send_signal(signal.SIGCONT)
                    else:
                        daemon = await asyncio.to_thread(own_daemon.begin, DAEMON)
                    said.setdefault(fault, []).extend([during, await answer(vm)])
            said["restored after"] = await restored(pool)
    finally:
        with suppress(ProcessLookupError):
            own_daemon.end(daemon, signal.SIGKILL)
    print(json.dumps(said))


asyncio.run(main())
