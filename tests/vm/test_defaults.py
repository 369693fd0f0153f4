"""A pool's defaults and the idle end of its leases, with real VMs."""

from __future__ import annotations

import anyio
import pytest

from sandbox.config import Limits, PoolConfig
from sandbox.errors import StateError
from sandbox.pool.pool import VMPool
from sandbox.result import Outcome
from sandbox.template.template import Template

LIMITS = Limits(open_files=64)


async def test_programs_and_cells_have_the_pools_time_out_and_limits(template: Template) -> None:
    """A call that names none has the pool's; a None of its own is none."""
    config = PoolConfig(min_size=1, max_size=1, exec_timeout=1.0, limits=LIMITS, kill_patience=10)
    async with VMPool(config, source=template) as pool, pool.acquire(60) as vm:
        assert (await vm.exec("ulimit -n")).stdout == b"64\n"
        assert (await vm.exec("ulimit -n", limits=None)).stdout != b"64\n"
        assert (await vm.exec("sleep 1000")).outcome is Outcome.TIMED_OUT
        assert (await vm.exec("sleep 1.5; echo done", timeout=None)).stdout == b"done\n"
        async with vm.context() as context:
            result = await context.run("while True: pass")
            assert (result.outcome, result.context_alive) == (Outcome.TIMED_OUT, True)
            result = await context.run("import time; time.sleep(1.5)", timeout=None)
            assert result.outcome is Outcome.EXITED


async def test_a_lease_that_has_used_files_ends_when_it_is_idle(template: Template) -> None:
    """A file server that waits in the guest, and our own questions to it, keep no lease alive."""
    async with VMPool(PoolConfig(min_size=1, max_size=1, idle_lease_timeout=7), source=template) as pool:
        lease = await pool.claim(60)
        await lease.vm.files.exists("x")
        with anyio.fail_after(20):
            await lease.wait_ended()
        with pytest.raises(StateError, match="has ended"):
            await lease.vm.files.exists("x")
