"""Runs on the host, in a control group that lets it have few threads: what does a pool make of it? In one word."""

import asyncio
import sys
from pathlib import Path

from sandbox import PoolConfig, VMPool
from sandbox.errors import SandboxError

group, more = Path(sys.argv[1]), int(sys.argv[2])


def limit(threads):
    (group / "pids.max").write_text(str(threads))


async def answer(vm):
    return (await vm.run("print(6 * 7)", timeout=30)).text.strip()


async def use():
    async with VMPool(PoolConfig(min_size=0, max_size=2, warm_up=False)) as pool:
        first = await pool.claim(60)
        limit(int((group / "pids.current").read_text()) + more)
        try:
            second = await pool.claim(20)
            said = await answer(second.vm)
            await second.release()
        except SandboxError as error:
            said = f"typed {error.code}: {error}"
        assert await answer(first.vm) == "42", "who had a VM lost it"
        limit("max")
        async with asyncio.timeout(30):
            while True:
                try:
                    async with pool.acquire() as vm:
                        assert await answer(vm) == "42", "with threads again, there are VMs again"
                    return said
                except SandboxError:  # the pool backs off: it says the cause of before until it tries again
                    await asyncio.sleep(0.1)


print(asyncio.run(use()))
