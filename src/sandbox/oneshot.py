"""The one-shot: any source of VMs, one piece of code, one result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from sandbox.arguments import GuestPath
from sandbox.errors import ConfigError
from sandbox.guest.sandbox import RunOptions, check_run
from sandbox.result import Result
from sandbox.template.template import Template
from sandbox.vm import VMSource


async def run(
    code: str,
    *,
    source: VMSource | None = None,
    language: str = "python",
    args: Sequence[GuestPath] = (),
    **options: Unpack[RunOptions],
) -> Result:
    """Run code in a VM of its own and destroy the VM.

    `source` is a pool, a template or a cold boot; by default a clone of the default template. See `Sandbox.run` for
    the rest, for what is raised, and for what the result says.
    """
    check_run(code, language, args, options)
    if source is not None and not callable(getattr(source, "lease", None)):
        raise ConfigError(f"source is a {type(source).__name__}; give a pool, a template or a cold boot")
    if source is None:
        source = await Template.ensure()
    async with source.lease() as vm:
        return await vm.run(code, language=language, args=args, **options)
