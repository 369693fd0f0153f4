"""Runs on the host as root, in a mount namespace of its own: a libvirt daemon that is stopped, killed and started again.

Its directories are small file systems of this namespace, so that it meets no daemon of the host's.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from sandbox import HostConfig, PoolConfig, VMPool
from sandbox.errors import SandboxError
from sandbox.hypervisor.process import become_subreaper

DAEMON = sys.argv[1]
FAULTS = sys.argv[2:]
OWN = ("/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
SOCKET = Path("/run/libvirt/libvirt-sock")
QEMU = 'stdio_handler = "file"\nsecurity_driver = "none"\ndynamic_ownership = 0\nremember_owner = 0\nnamespaces = []\n'
QEMU += "cgroup_controllers = []\n"
PLAIN = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'


def begin():
    SOCKET.unlink(missing_ok=True)
    daemon = subprocess.Popen([DAEMON], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not SOCKET.exists():
        assert daemon.poll() is None, "the daemon does not start"
        time.sleep(0.01)
    return daemon


def reap_orphans():
    """Bury the daemon's QEMUs, as an init does: the tests' own process adopts orphans and would leave them zombies."""
    while True:
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                name, _, fields = status.read_text().partition("(")[2].rpartition(")")
                if name.startswith("qemu") and fields.split()[:2] == ["Z", str(os.getpid())]:
                    os.waitpid(int(status.parent.name), 0)
        time.sleep(0.05)


def end(daemon, number):
    daemon.send_signal(number)
    daemon.wait(30)


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
    for path in OWN:
        Path(path).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", path], check=True)
    Path("/etc/libvirt/qemu.conf").write_text(QEMU)
    Path("/etc/libvirt/libvirtd.conf").write_text(PLAIN)
    daemon = begin()
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
                        await asyncio.to_thread(end, daemon, {"kill": signal.SIGKILL, "restart": signal.SIGTERM}[fault])
                    during = await answer(vm)
                    if fault == "hang":
                        daemon.send_signal(signal.SIGCONT)
                    else:
                        daemon = await asyncio.to_thread(begin)
                    said.setdefault(fault, []).extend([during, await answer(vm)])
            said["restored after"] = await restored(pool)
    finally:
        with suppress(ProcessLookupError):
            end(daemon, signal.SIGKILL)
    print(json.dumps(said))


become_subreaper()
threading.Thread(target=reap_orphans, daemon=True).start()
asyncio.run(main())
