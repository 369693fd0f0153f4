"""The one-shot: any source of VMs, one piece of code, one result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from sandbox.guest.sandbox import RunOptions
from sandbox.result import Result
from sandbox.template.template import Template
from sandbox.vm import VMSource


async def run(
    code: str,
    *,
    source: VMSource | None = None,
    language: str = "python",
    args: Sequence[str] = (),
    **options: Unpack[RunOptions],
) -> Result:
    """Run code in a VM of its own and destroy the VM.

    `source` is a pool, a template or a cold boot; by default a clone of the default template. See `Sandbox.run` for
    the rest, for what is raised, and for what the result says.
    """
    if source is None:
        source = await Template.ensure()
    async with source.lease() as vm:
        return await vm.run(code, language=language, args=args, **options)
