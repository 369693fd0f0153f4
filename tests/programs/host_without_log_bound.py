"""Print how large QEMU's log gets when its launcher bounds nothing and a guest has QEMU complain so many times."""

import asyncio
import sys
from pathlib import Path

from sandbox.hypervisor import facts
from sandbox.template.template import Template

facts._LAUNCHER = "".join(line for line in facts._LAUNCHER.splitlines(keepends=True) if not line.startswith("ulimit"))


async def main() -> None:
    template = await Template.ensure()
    async with template.lease() as vm:
        program = Path(__file__).with_name("misuse_device.py").read_bytes()
        await vm.write_file("/tmp/misuse.py", program, user="root")
        (await vm.exec(["python3", "/tmp/misuse.py", sys.argv[1]], user="root", timeout=60)).check()
        print(template.host.starter._log_file(vm.name).stat().st_size)


asyncio.run(main())
