"""A secret of one tenant, and the searches for it: by the guest's root, and by the host in a QEMU's memory."""

from __future__ import annotations

import asyncio
import json
import secrets

from sandbox.vm import VM
from tests.conftest import PROGRAMS
from tests.proofs.memory_search import Search, search_memory

PLANT, FIND = ((PROGRAMS / name).read_text() for name in ("plant_canary.py", "find_canary.py"))
MARK = secrets.token_hex(16)
"""Begins every secret of this process: who looks for it looks for the secrets of all tenants before."""


class Canary:
    """Random, and known to one tenant only, as is the port that it listens on."""

    def __init__(self) -> None:
        self.text = MARK + secrets.token_hex(16)
        self.port = 1024 + secrets.randbelow(60000)

    async def plant(self, vm: VM) -> set[str]:
        """Leave it in the VM as a careless tenant would; return where it lies. It is held as long as the VM lives."""
        interpreter = vm.open_context("python", user="root")
        arguments = ["plant", self.text, str(self.port)]
        result = await interpreter.run(f"import sys; sys.argv = {arguments!r}\n{PLANT}")
        assert result.ok, f"the canary was not planted: {result}"
        return {*result.text.strip().split(","), "memory"}

    async def find_inside(self, vm: VM, sought: str, *, everything: bool) -> set[str]:
        """Look for `sought` as root, in two halves, so that the search itself holds no copy of it."""
        half = len(sought) // 4 * 2
        arguments = [sought[:half], sought[half:], str(self.port), *(["everything"] if everything else [])]
        result = await vm.run(FIND, args=arguments, user="root", timeout=120)
        return set(json.loads(result.check().text))


async def find_outside(vm: VM, sought: str) -> Search:
    """Look for `sought`, as bytes and as text, in all memory of the VM's QEMU, its guest's included."""
    return await asyncio.to_thread(search_memory, vm.pid, (bytes.fromhex(sought), sought.encode()))
