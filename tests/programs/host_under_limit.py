"""Runs on the host, with few descriptors: open a pool, use it, close it. Say how it went in one word."""

import asyncio
import resource
import sys

from sandbox import PoolConfig, VMPool
from sandbox.errors import SandboxError


async def use():
    async with VMPool(PoolConfig(min_size=4, max_size=4, warm_up=False)) as pool:
        leases = [await pool.claim(20) for _ in range(4)]
        return (await leases[0].vm.run("print(6 * 7)", timeout=30)).text.strip()


limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    print(asyncio.run(use()))
except SandboxError as error:
    print(f"typed {error.code}: {error}")
