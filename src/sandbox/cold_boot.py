"""The slow source of VMs: boot an image for each lease. No template is needed and none is made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from sandbox.errors import GuestLost, StartError
from sandbox.handle import Handle
from sandbox.hypervisor.host import Hypervisor
from sandbox.hypervisor.spec import MachineSpec
from sandbox.image.store import Image
from sandbox.trace.kernel_log import LOG_BYTES, READ, LogLine, log_lines
from sandbox.trace.stage import recorder, stage, unrecorded
from sandbox.vm import BOOT_SECONDS, READY_SECONDS, VM, open_vm


class ColdBoot(Handle):
    """Boots one VM per lease from an image: seconds instead of a tenth of one, but nothing is shared with anybody."""

    def __init__(self, host: Hypervisor, image: Image, *, memory_mib: int = 256, vcpus: int = 1) -> None:
        self._host = host
        self._languages = image.manifest.recipe.languages
        self.spec = MachineSpec(
            kernel=image.kernel, initrd=image.initrd, root=image.root, memory_mib=memory_mib, vcpus=vcpus
        )

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[VM]:
        """Boot one VM, give it for the length of the context, destroy it."""
        trace, boot = recorder.get(), None
        async with AsyncExitStack() as stack:
            with stage("boot"):
                machine = await self._host.start(replace(self.spec, is_traced=trace is not None))
                if trace is not None:
                    boot = trace.add_boot(machine.name)
                    machine.console.on_data = boot.hear
                opened = open_vm(machine, ready_seconds=BOOT_SECONDS, languages=self._languages)
                vm = await stack.enter_async_context(opened)
            if boot is not None:
                with stage("read the kernel's log"):
                    boot.log = await _kernel_log(vm)
            vm.is_lent = True
            yield vm


async def _kernel_log(vm: VM) -> list[LogLine]:
    """Return what the guest's kernel has logged; nothing if the guest does not tell."""
    try:
        with unrecorded():
            result = await vm.run(READ, user="root", timeout=READY_SECONDS, capture_bytes=LOG_BYTES)
    except GuestLost as error:
        raise StartError(f"the guest of {vm.name} was lost when it had booted: {error}") from error
    return log_lines(result.stdout.decode(errors="replace")) if result.ok else []
