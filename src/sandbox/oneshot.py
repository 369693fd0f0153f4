"""The one-shot: any source of VMs, one piece of code, one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sandbox.guest.run import OutputSink, Stdin
from sandbox.result import Result
from sandbox.template.template import Template
from sandbox.vm import VMSource


async def run(
    code: str,
    *,
    source: VMSource | None = None,
    args: Sequence[str] = (),
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Stdin = b"",
    on_output: OutputSink | None = None,
) -> Result:
    """Run Python code in a VM of its own and destroy the VM.

    `source` is a pool, a template or a cold boot; by default a clone of the default template. See `VM.run` for the
    rest, for what is raised, and for what the result says.
    """
    if source is None:
        source = await Template.ensure()
    async with source.lease() as vm:
        return await vm.run(code, args=args, timeout=timeout, env=env, stdin=stdin, on_output=on_output)
