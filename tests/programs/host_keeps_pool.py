"""Keep a pool and a lease; for each line on standard input, use the lease and a fresh VM, and say so."""

import asyncio
import sys

from sandbox import PoolConfig, VMPool
from sandbox.config import TemplateConfig


async def main() -> None:
    config = PoolConfig(template=TemplateConfig(memory_mib=160), min_size=1, max_size=4, template_check_interval=0.3)
    async with VMPool(config) as pool, pool.acquire() as leased:
        print("open", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            async with pool.acquire(timeout=60) as fresh:
                for vm in (leased, fresh):
                    assert (await vm.run("print(6 * 7)", timeout=30)).text == "42\n"
            print("alive", flush=True)


asyncio.run(main())
