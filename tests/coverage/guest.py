"""A pytest plugin that has the guests' agent traced and keeps what they noted; only `tests.coverage.measure` uses it.

Each clone is asked at the end of its lease. What the agent did before the snapshot is in each of them.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from coverage import CoverageData

from sandbox.errors import SandboxError
from sandbox.hypervisor.machine import Machine
from sandbox.image.inputs import agent_sources
from sandbox.template import template
from sandbox.vm import VM, open_vm
from tests.coverage import tracer

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "guest_agent"
DATA = "SANDBOX_COVERAGE_DATA"
"""Variable with the file that the session's arcs are written to."""
_HEAD = (
    "import os, sys; sys.path.insert(0, os.path.dirname(os.path.abspath(__file__))); "
    "import tracer; tracer.begin(sys.path[0]); "
)
_TAIL = "\nimport tracer; exec = tracer.untraced(exec); eval = tracer.untraced(eval)\n"
_MAIN = ("start.py", "zygote_main.py", "interpreter_main.py")
_RUN_USERS_CODE = ("program.py", "interpreter.py")
_SECONDS = 10
_noted: set[tuple[int, int, int]] = set()


def write_traced(target: Path) -> None:
    """Write the agent to a new directory, with the tracer. No line of it moves."""
    target.mkdir()
    for path in sorted(SOURCE.glob("*.py")):
        text = path.read_text()
        if path.name in _MAIN:
            text = _HEAD + text
        if path.name in _RUN_USERS_CODE:
            text += _TAIL
        (target / path.name).write_text(text)
    shutil.copy(tracer.__file__, target / "tracer.py")


@asynccontextmanager
async def _open_and_ask(machine: Machine, **options: Any) -> AsyncIterator[VM]:
    async with open_vm(machine, **options) as vm:
        try:
            yield vm
        finally:
            if vm.is_alive:
                with anyio.CancelScope(shield=True), suppress(SandboxError, TimeoutError):
                    await _ask(vm)


async def _ask(vm: VM) -> None:

    result = await vm.exec(["cat", tracer.TABLE], user="root", timeout=_SECONDS)
    if result.ok:
        _noted.update(tracer.decode(result.stdout))


def pytest_configure() -> None:
    setattr(template, "open_vm", _open_and_ask)  # noqa: B010 - mypy sees no such name there


def pytest_unconfigure() -> None:
    names = sorted(agent_sources())
    arcs: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
    for number, line, following in _noted:
        if (path := SOURCE / names[number]).exists():
            arcs[str(path)].add((line, following))
    data = CoverageData(os.environ[DATA], suffix=True)
    data.add_arcs(arcs)
    data.touch_files([str(path) for path in SOURCE.glob("*.py")])  # those that never ran count, too
    data.write()
