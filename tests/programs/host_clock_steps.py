"""Runs on the host with `clock_step.c` preloaded: steps the wall clock under a pool and says what followed."""

import asyncio
import datetime
import json
import os
import struct
import time
from pathlib import Path

from sandbox import PoolConfig, VMPool

STEPS = {"+1 h": 3600, "-1 h": -3600, "+1 y": 31536000, "-1 y": -31536000}
said = {}


def step(seconds):
    with Path(os.environ["CLOCK_STEP_FILE"]).open("r+b") as file:
        file.write(struct.pack("q", seconds))


async def main():
    config = PoolConfig(min_size=2, max_size=4, ttl=300, idle_lease_timeout=300, warm_up=False)
    async with VMPool(config) as pool:
        await pool.wait_ready()
        held = await pool.claim(30, lease_ttl=300)
        for name, seconds in STEPS.items():
            before = time.time()
            step(seconds)
            stepped = time.time() - before
            left, result = held.left, await held.vm.run("print('held')", timeout=30)
            async with pool.acquire(timeout=30):
                pass  # the VM that was restored before the step
            await pool.wait_ready()
            async with pool.acquire(timeout=30):
                pass  # the other one
            await pool.wait_ready()
            async with pool.acquire(timeout=30) as vm:  # one that was restored after it
                guest = float((await vm.run("import time; print(time.time())", timeout=30)).text)
                offset = vm.receipt.clock_offset
            said[name] = {
                "stepped": stepped,
                "left": left,
                "ended": held.has_ended,
                "text": result.text,
                "duration": result.duration,
                "guest off": guest - time.time(),
                "receipt off": offset,
                "now": datetime.datetime.now(datetime.UTC).isoformat(),
            }
            step(0)
        said["expired"] = pool.statistics().expired
        await held.release()


asyncio.run(main())
print(json.dumps(said))
