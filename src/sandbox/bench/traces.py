"""Where the time of a figure goes: one trace of what it measures, taken when all figures are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.bench.starts import boots
from sandbox.errors import SandboxError
from sandbox.trace.plain import as_plain, from_plain
from sandbox.trace.recorder import recording
from sandbox.trace.span import Span
from sandbox.trace.stage import stage
from sandbox.vm import VM, VMSource

if TYPE_CHECKING:
    from sandbox.bench.suite import Suite

Source = Callable[["Suite"], VMSource]


async def _nothing(_: VM) -> None:
    pass


async def _first_command(vm: VM) -> None:
    with stage("execute"):
        (await vm.run("print(6 * 7)")).check()


@dataclass(frozen=True)
class Explanation:
    """One trace: the figures that it explains, where its VM comes from, and what is done with it."""

    figures: frozenset[str]
    source: Source
    use: Callable[[VM], Awaitable[None]] = _nothing


TRACES: Mapping[str, Explanation] = {
    "restore": Explanation(frozenset({"S3"}), lambda suite: suite.template),
    "restore and first command": Explanation(frozenset({"S4", "A3"}), lambda suite: suite.template, _first_command),
    "cold boot, Debian's kernel": Explanation(frozenset({"B1"}), lambda suite: boots(suite)["B1"]),
    "cold boot, minimal kernel": Explanation(frozenset({"B2"}), lambda suite: boots(suite)["B2"]),
}


def explaining(figures: Iterable[str], traces: Mapping[str, Explanation] = TRACES) -> list[str]:
    """Return the names of the traces that explain one of these figures."""
    ids = set(figures)
    return [name for name, trace in traces.items() if trace.figures & ids]


async def take_traces(
    suite: Suite, figures: Iterable[str], traces: Mapping[str, Explanation] = TRACES
) -> dict[str, Sequence[Span]]:
    """Return the traces for these figures by name. One that fails is a note of the run and nothing else."""
    taken: dict[str, Sequence[Span]] = {}
    for name in explaining(figures, traces):
        suite.say(f"tracing: {name}")
        try:
            taken[name] = await _trace(suite, traces[name])
        except (SandboxError, OSError) as error:
            suite.note(f"no trace of {name}: {error}")
    return taken


async def _trace(suite: Suite, wanted: Explanation) -> list[Span]:
    """Return what was recorded until the VM was used; its end belongs to no figure."""
    async with AsyncExitStack() as stack:
        with recording() as trace:
            vm = await stack.enter_async_context(wanted.source(suite).lease())
            await wanted.use(vm)
    return from_plain(as_plain(trace.spans()))  # as whoever reads the document has them
