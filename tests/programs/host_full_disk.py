"""Runs on the host as root, in mount namespaces of its own: file systems fill up, become read-only, have room again."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from sandbox import PoolConfig, Template, TemplateConfig, VMPool
from sandbox.errors import HostResources, PoolTimeout, SandboxError

RUNTIME, DATA = Path(os.environ["SANDBOX_RUNTIME_DIR"]), Path(os.environ["SANDBOX_DATA_DIR"])
said = {}


def mount(target, options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "tmpfs", str(target)], check=True)


def remount(target, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(target)], check=True)


def fill(path):
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


async def answer(pool, seconds):
    """Return the right answer, or the code of a typed error."""
    try:
        async with pool.acquire(timeout=seconds) as vm:
            return (await vm.run("print(6 * 7)", timeout=30)).text.strip()
    except SandboxError as error:
        return error.code


async def recovered(pool):
    """Whether the same pool serves again; after failures it tries ever more slowly, and refuses meanwhile."""
    for _ in range(120):
        if await answer(pool, 5) == "42":
            return True
        await asyncio.sleep(0.25)
    return False


async def runtime():
    mount(RUNTIME, "size=4m")
    async with VMPool(PoolConfig(min_size=1, max_size=2, warm_up=False)) as pool:
        await pool.wait_ready()
        lease = await pool.claim(30)
        fill(RUNTIME / "filler")
        said["held"] = (await lease.vm.run("print('held')", timeout=30)).text.strip()
        await lease.release()
        said["meanwhile"] = [await answer(pool, 3) for _ in range(3)]
        (RUNTIME / "filler").unlink()
        said["recovered"] = await recovered(pool)
        if said["recovered"]:
            await pool.wait_ready()
        record = pool.statistics()
        said["books"] = record.claimed == record.released + record.lost and record.lost == 0


async def data():
    mount(DATA, "size=64m")
    shared = Path(sys.argv[2])
    (DATA / "images").symlink_to(shared / "images")
    (DATA / "host").symlink_to(shared / "host")
    config = TemplateConfig(memory_mib=128)
    for name, options in (("full", "size=64m"), ("read-only", "ro"), ("room", "rw,size=600m")):
        remount(DATA, options)
        try:
            template = await Template.ensure(config)
            async with template.lease() as vm:
                said[name] = (await vm.run("print(6 * 7)", timeout=30)).text.strip()
        except SandboxError as error:
            said[name] = error.code
    said["left"] = [path.name for path in (DATA / "templates").glob(".*")]


asyncio.run({"runtime": runtime, "data": data}[sys.argv[1]]())
print(json.dumps(said))
