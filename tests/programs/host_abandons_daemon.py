"""A process with a pool of a libvirt daemon's VMs is killed: all of them end, and `reap` clears up; see `own_daemon`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import libvirt
import own_daemon

from sandbox import HostConfig, PoolConfig, VMPool
from sandbox.hypervisor.inventory import find_machines, leaks
from sandbox.hypervisor.rundir import reap

URI = "qemu:///system"
SECONDS = 20


async def hold():
    """Keep a pool of one running and two paused VMs, until killed."""
    config = PoolConfig(min_size=3, max_size=3, running_ready=1, warm_up=False, host=HostConfig(uri=URI))
    async with VMPool(config) as pool:
        await pool.wait_ready()
        while len(domains(libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED)) < 2:
            await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)


def domains(flags=0):
    connection = libvirt.open(URI)
    try:
        return [domain.name() for domain in connection.listAllDomains(flags)]
    finally:
        connection.close()


def within_seconds(is_so):
    """Wait for a condition, and return whether it came."""
    deadline = time.monotonic() + SECONDS
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_so()


def main():
    runtime = HostConfig().runtime_dir
    own_daemon.prepare()
    daemon = own_daemon.begin(sys.argv[1])
    try:
        killed = subprocess.run([sys.executable, __file__, "hold"], check=False).returncode
        said = {"killed by": -killed}
        said["all are gone"] = within_seconds(lambda: not domains() and not find_machines(runtime))
        said["cleared"] = reap(runtime)
        said["leaks"] = leaks(runtime)
    finally:
        with suppress(ProcessLookupError):
            own_daemon.end(daemon, signal.SIGKILL)
    print(json.dumps(said))


if sys.argv[1] == "hold":
    asyncio.run(hold())
else:
    main()
