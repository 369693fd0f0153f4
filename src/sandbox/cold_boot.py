"""The slow source of VMs: boot an image for each lease. No template is needed and none is made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandbox.hypervisor.host import Hypervisor
from sandbox.hypervisor.spec import MachineSpec
from sandbox.image.store import Image
from sandbox.vm import BOOT_SECONDS, VM, open_vm


class ColdBoot:
    """Boots one VM per lease from an image: seconds instead of a tenth of one, but nothing is shared with anybody."""

    def __init__(self, host: Hypervisor, image: Image, *, memory_mib: int = 256, vcpus: int = 1) -> None:
        self._host = host
        self._languages = image.manifest.recipe.languages
        self._spec = MachineSpec(
            kernel=image.kernel, initrd=image.initrd, root=image.root, memory_mib=memory_mib, vcpus=vcpus
        )

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[VM]:
        """Boot one VM, give it for the length of the context, destroy it."""
        machine = await self._host.start(self._spec)
        async with open_vm(machine, ready_seconds=BOOT_SECONDS, languages=self._languages) as vm:
            vm.is_lent = True
            yield vm
