"""Each argument of each public method is given odd values: they are taken, or refused before anything is sent."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pytest

import sandbox
import sandbox.sync
from sandbox import oneshot
from sandbox.arguments import PATH_BYTES
from sandbox.config import PoolConfig
from sandbox.errors import ConfigError
from sandbox.guest.sandbox import ProgramOptions, RunOptions
from sandbox.pool.pool import VMPool
from sandbox.sync.inside import Sandbox as SyncSandbox
from sandbox.sync.portal import Portal
from sandbox.template.template import Template
from sandbox.vm import VM, VMSource
from tests.fakes.world import FakeWorld
from tests.fuzz.channel import Channel

ODD: dict[str, object] = {
    "none": None,
    "true": True,
    "minus": -1,
    "zero": 0,
    "huge": 10**400,
    "fraction": 0.5,
    "nan": math.nan,
    "infinite": math.inf,
    "empty": "",
    "nul": "a\0b",
    "surrogate": "\ud83d",
    "raw": "\udcff",
    "long": "x" * (PATH_BYTES + 1),
    "bytes": b"\xff",
    "object": object(),
    "list": [1],
    "mapping": {1: 2},
}
TEXT = {"empty", "nul", "raw", "long"}
WORD = {"raw"}
PATH = {"raw", "bytes"}
NUMBER = {"zero"}
SECONDS = {"fraction"}
NONE = {"none"}
DATA = {"empty", "nul", "raw", "long", "bytes"}
TAKEN: dict[str, set[str]] = {
    "append": {"true"},
    "args": set(),
    "argv": {"empty", "raw", "long"},
    "capture_bytes": NUMBER,
    "claim_timeout": NONE | NUMBER | SECONDS,
    "code": TEXT,
    "columns": NUMBER,
    "config": NONE,
    "content": DATA,
    "cwd": NONE | PATH,
    "data": DATA,
    "env": NONE,
    "exclude": set(),
    "exclusive": {"true"},
    "follow": {"true"},
    "host_config": NONE,
    "id": WORD | {"empty"},
    "ident": TEXT,
    "idle_timeout": NONE | SECONDS,
    "kill_children": {"true"},
    "language": set(),
    "lease_ttl": NONE | SECONDS,
    "limit": NUMBER,
    "limits": NONE,
    "links": set(),
    "max_bytes": NUMBER,
    "max_entries": NUMBER,
    "mode": NONE | NUMBER,
    "name": PATH | {"empty"},
    "number": set(),
    "observer": set(),
    "observers": set(),
    "offset": NUMBER,
    "on_output": NONE,
    "overwrite": {"true"},
    "parents": {"true"},
    "path": PATH,
    "priority": NUMBER | {"minus", "fraction"},
    "pty": NONE,
    "recursive": {"true"},
    "replace": {"true"},
    "rows": NUMBER,
    "size": NONE | NUMBER,
    "source": PATH,
    "sources": NONE,
    "stderr_offset": NUMBER,
    "stdin": NONE | DATA,
    "stdout_offset": NUMBER,
    "stream": set(),
    "strict": {"true"},
    "target": PATH,
    "template": set(),
    "timeout": NONE | SECONDS,
    "tree": {"true"},
    "ttl": NONE | SECONDS,
    "user": NONE | WORD,
}
"""Which odd values each argument takes, by its name. All others have to be refused."""
EXCEPT: dict[tuple[str, str], set[str]] = {
    ("Sandbox.upload", "source"): set(),  # there is none of these on this host
    ("Execution.write", "data"): DATA,
    ("Files.chmod", "mode"): NUMBER,
    ("Files.stream", "limit"): NONE | NUMBER,
    ("Context.run", "capture_bytes"): NONE | NUMBER,
    ("VMPool.claim", "timeout"): NONE | NUMBER | SECONDS,
    ("VMPool.acquire", "timeout"): NONE | NUMBER | SECONDS,
    ("VMPool.statistics", "template"): NONE,
    ("VMPool.__init__", "source"): NONE,
    ("run", "source"): NONE,
    ("run", "language"): WORD,  # only a VM knows its image's languages
    ("VMPool.run", "language"): WORD,
}
NOT_FOR_CALLERS = {
    "Sandbox": {"set_defaults"},
    "Execution": {
        "account", "deliver", "feed", "follow", "lose", "retire", "send_input", "send_input_nowait", "settle", "start",
        "stop", "take_answers", "unfollow",
    },
    "Template": {"at", "drift", "former", "is_intact", "is_wanted", "kept", "successor", "tidy", "warmed"},
}  # fmt: skip
"""What the library's own parts call."""
NEEDED: dict[str, object] = {
    "argv": ["x"], "code": "1", "content": b"x", "data": b"x", "ident": "x", "mode": 0o600, "number": 2,
    "observer": print, "path": "x", "rows": 1, "columns": 1, "source": "/proc/self/status", "stream": "stdout",
    "target": "y", "ttl": 5, "user": None,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One odd value for one argument of one method."""

    method: str
    argument: str
    odd: str

    @property
    def is_taken(self) -> bool:
        return self.odd in EXCEPT.get((self.method, self.argument), TAKEN[self.argument])

    def arguments(self, function: Callable[..., object]) -> dict[str, object]:
        """Return what to call it with."""
        needed = {
            name: NEEDED[name]
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is parameter.empty and name not in ("self", "options")
        }
        return {**needed, self.argument: ODD[self.odd]}


def _arguments(function: Callable[..., object]) -> Iterator[str]:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            yield from (ProgramOptions if "Program" in str(parameter.annotation) else RunOptions).__annotations__
            if "Run" in str(parameter.annotation):
                yield from ProgramOptions.__annotations__
        elif name not in ("self", "cls"):
            yield name


def _methods(owner: type) -> Iterator[str]:
    left_out = NOT_FOR_CALLERS.get(owner.__name__, set())
    for name, value in inspect.getmembers(owner):
        if not name.startswith("_") and callable(value) and name not in left_out:
            yield name


def _cases(owner: type) -> list[Case]:
    return [
        Case(f"{owner.__name__}.{name}", argument, odd)
        for name in _methods(owner)
        for argument in dict.fromkeys(_arguments(getattr(owner, name)))
        for odd in ODD
    ]


async def _try(call: Callable[[], object], *, in_thread: bool = False) -> BaseException | None:
    """Return what it raises by the time at which it waits for an answer; None if it has been taken."""

    async def run() -> None:
        made = call()
        if hasattr(made, "__aenter__"):
            async with cast("Any", made):
                return
        if inspect.isasyncgen(made):
            await anext(made)
        elif inspect.isawaitable(made):
            await made

    task = asyncio.ensure_future(run())
    if in_thread:
        await asyncio.wait([task], timeout=5)
    for _ in range(20):
        await asyncio.sleep(0)
    if task.done():
        return task.exception()
    task.cancel()
    await asyncio.wait([task], timeout=5)
    return None


def _judge(case: Case, error: BaseException | None, was_sent: bool) -> str:
    if case.is_taken:
        return "" if error is None or not isinstance(error, ConfigError | TypeError) else f"{case}: {error!r}"
    if not isinstance(error, ConfigError):
        return f"{case}: {error!r} instead of a refusal"
    return f"{case}: something was sent, then {error!r}" if was_sent else ""


def _inside() -> tuple[Channel, dict[str, object]]:
    channel = Channel()
    vm = sandbox.Sandbox(channel.client)
    return channel, {
        "Sandbox": vm,
        "Files": vm.files,
        "Execution": channel.start(id="running"),
        "Context": vm.open_context(),
    }


@pytest.mark.parametrize("owner", [sandbox.Sandbox, sandbox.Files, sandbox.Execution, sandbox.Context])
async def test_inside_of_a_vm(owner: type) -> None:
    """Programs, contexts and files: a refused call leaves no frame and no execution behind."""
    wrong = []
    for case in _cases(owner):
        channel, things = _inside()
        function = getattr(things[owner.__name__], case.method.partition(".")[2])
        sent, known = channel.queued_bytes, len(channel.client.executions.all_running())
        arguments = case.arguments(function)
        in_thread = (case.method, case.argument) == ("Sandbox.upload", "source")  # it looks at the host's files
        error = await _try(lambda: function(**arguments), in_thread=in_thread)  # noqa: B023 - called at once
        was_sent = (channel.queued_bytes, len(channel.client.executions.all_running())) != (sent, known)
        wrong.append(_judge(case, error, was_sent))
        channel.release()
    assert len(wrong) > len(ODD), "the control: there are arguments"
    assert [found for found in wrong if found] == []


def _fake() -> VMSource:
    return cast("VMSource", FakeWorld(start_seconds=0.001))


async def test_pools_and_leases() -> None:
    """A refused call claims no VM and starts none."""
    wrong = []
    async with VMPool(PoolConfig(min_size=0, max_size=1, template_check_interval=None), source=_fake()) as pool:
        lease = await pool.claim(5)
        for owner, thing in ((VMPool, pool), (sandbox.Lease, lease)):
            for case in _cases(owner):
                if case.method in ("VMPool.aclose", "VMPool.close_nowait"):
                    continue
                function = getattr(thing, case.method.partition(".")[2])
                arguments = case.arguments(function)
                before = pool.statistics()
                error = await _try(lambda: function(**arguments))  # noqa: B023 - called at once
                wrong.append(_judge(case, error, pool.statistics() != before))
        lease.renew(None)
        assert pool.statistics().claimed == 1
        await lease.release()
    for argument in _arguments(VMPool.__init__):
        for odd in ODD:
            case = Case("VMPool.__init__", argument, odd)
            error = await _try(lambda: VMPool(**{case.argument: ODD[case.odd]}))  # type: ignore[arg-type]  # noqa: B023
            wrong.append(_judge(case, error, was_sent=False))
    assert [found for found in wrong if found] == []


async def test_one_shots_and_templates() -> None:
    """A refused call of `run` asks its source for nothing, one of `Template.ensure` looks for no image."""
    wrong, world = [], FakeWorld(start_seconds=1000)
    for argument in dict.fromkeys(_arguments(oneshot.run)):
        for odd in ODD:
            case = Case("run", argument, odd)
            if argument == "source" and case.is_taken:
                continue  # it would bake
            arguments = {"source": world, **case.arguments(oneshot.run)}
            started = world.started
            error = await _try(lambda: oneshot.run(**arguments))  # type: ignore[arg-type]  # noqa: B023
            wrong.append(_judge(case, error, world.started != started))
    assert set(_methods(Template)) == {"ensure", "lease"}, "what callers use of a template"
    for argument in _arguments(Template.ensure):
        for odd in ODD:
            case = Case("Template.ensure", argument, odd)
            if not case.is_taken:
                error = await _try(lambda: Template.ensure(**{case.argument: ODD[case.odd]}))  # type: ignore[arg-type]  # noqa: B023
                wrong.append(_judge(case, error, was_sent=False))
    assert [found for found in wrong if found] == []


SYNC: Mapping[str, tuple[type, Callable[[SyncSandbox], object]]] = {
    "Sandbox": (sandbox.sync.Sandbox, lambda vm: vm),
    "Files": (sandbox.sync.Files, lambda vm: vm.files),
    "Execution": (sandbox.sync.Execution, lambda vm: vm.attach("running")),
    "Context": (sandbox.sync.Context, lambda vm: vm.open_context()),
}


def _try_now(function: Callable[..., object], case: Case) -> BaseException | None:
    """Return what a synchronous method raises; None if it has been taken."""
    try:
        made = function(**case.arguments(function))
        if hasattr(made, "__enter__") and not isinstance(made, sandbox.sync.Execution | sandbox.sync.Context):
            with cast("Any", made):
                pass
        if hasattr(made, "__next__"):
            next(cast("Any", made))
    except Exception as caught:  # noqa: BLE001 - it is what is judged
        return caught
    return None


def test_synchronous_pools_and_leases_refuse_the_same() -> None:
    """A refused call claims no VM and starts none."""
    wrong = []
    config = PoolConfig(min_size=0, max_size=1, template_check_interval=None)
    with sandbox.sync.VMPool(config, source=_fake()) as pool:
        lease = pool.claim(5)
        for owner, thing in ((sandbox.sync.VMPool, pool), (sandbox.sync.Lease, lease)):
            for case in _cases(owner):
                if case.is_taken:
                    continue
                function, before = getattr(thing, case.method.partition(".")[2]), pool.statistics()
                error = _try_now(function, case)
                wrong.append(_judge(case, error, pool.statistics() != before))
        assert pool.statistics().claimed == 1
        assert not lease.has_ended
        lease.release()
    for argument in _arguments(sandbox.sync.VMPool.__init__):
        for odd in ODD:
            case = Case("VMPool.__init__", argument, odd)
            if not case.is_taken:
                wrong.append(_judge(case, _try_now(sandbox.sync.VMPool, case), was_sent=False))
    assert len(wrong) > len(ODD), "the control: there are arguments"
    assert [found for found in wrong if found] == []


@pytest.mark.parametrize("name", SYNC)
def test_synchronous_twins_refuse_the_same(name: str) -> None:
    """What the asynchronous method refuses is refused, and nothing is sent."""
    owner, find = SYNC[name]
    portal = Portal()
    channel = portal.do(Channel)
    portal.do(lambda: channel.start(id="running"))
    vm = SyncSandbox(portal, cast("VM", portal.do(lambda: sandbox.Sandbox(channel.client))))
    thing, wrong = find(vm), []
    for case in _cases(owner):
        if case.is_taken:
            continue
        function, sent = getattr(thing, case.method.partition(".")[2]), channel.queued_bytes
        error = _try_now(function, case)
        wrong.append(_judge(case, error, channel.queued_bytes != sent))
    portal.do(channel.release)
    portal.stop()
    portal._loop.close()
    assert [found for found in wrong if found] == []
