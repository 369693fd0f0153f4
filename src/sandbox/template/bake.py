"""Make a golden snapshot: boot once, warm the guest, inspect it, bring it to rest, freeze it.

Nothing that somebody has used can be frozen: whoever bakes gives a description of a machine, never a machine.
"""

from __future__ import annotations

import datetime
import errno
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from sandbox.errors import GuestLost, HostResources, SandboxError, StartError, TemplateError
from sandbox.hypervisor.host import Hypervisor
from sandbox.hypervisor.memory_file import allocate
from sandbox.hypervisor.spec import MachineSpec
from sandbox.log import log
from sandbox.paths import make_directory
from sandbox.stored import refused
from sandbox.template.lint import LintReport, lint
from sandbox.template.manifest import MEMORY, STATE, FileDigest, Requirement, TemplateManifest
from sandbox.vm import BOOT_SECONDS, READY_SECONDS, VM, open_vm

_WARM_SCRIPT = """\
import collections, contextlib, dataclasses, functools, json, pathlib, re, shutil, subprocess, sys, tempfile, time
subprocess.run(["bash", "-c", "true"], check=True)
with tempfile.NamedTemporaryFile() as file:
    file.write(json.dumps({"a": [1, 2.5, None]}).encode())
print(re.sub("a+", "b", "caat"))
"""
_WARM_RUNS = 3
_ATTEMPTS = 2
_CLOCK_SECONDS = 0.5
_STATE_BYTES = 4 * 1024 * 1024


async def bake(
    host: Hypervisor,
    spec: MachineSpec,
    requirement: Requirement,
    target: Path,
    *,
    series: str = "",
    generation: int = 1,
) -> None:
    """Publish a template for `requirement` at `target`, replacing what is there. The caller holds the target's lock.

    If this fails or is cancelled, no VM and no half-made template is left; what was at `target` stays.
    """
    async with unpublished(host, spec, requirement, target, series=series, generation=generation) as work:
        await run_sync(publish, work, target)


@asynccontextmanager
async def unpublished(
    host: Hypervisor, spec: MachineSpec, requirement: Requirement, target: Path, *, series: str, generation: int
) -> AsyncIterator[Path]:
    """Make a template beside `target` and give its directory; remove it in the end, unless it was published by then.

    The machine is booted here and ends here. Raises `TemplateError` when its guest is lost twice,
    does not come to rest, or holds what no clone may; see `LintReport`.
    """
    work = target.with_name(f".bake-{target.name}")
    try:
        with _telling_what_is_wrong(work):
            frozen = await _frozen(host, spec, work)
            await run_sync(_seal, work)
            manifest = TemplateManifest(
                requirement=requirement,
                series=series,
                generation=generation,
                agent=frozen.agent,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                freeze_seconds=frozen.seconds,
                files=await run_sync(_digests, work),
                lint=frozen.report,
            )
            await run_sync(manifest.save, work)
        said = {"freeze_seconds": round(frozen.seconds, 4), "lint": frozen.report.verdict}
        log.info("template_baked", template=target.name, **said)
        yield work
    finally:
        with anyio.CancelScope(shield=True):  # asyncio's own cancellation knows no shield; the thread then ends alone
            await run_sync(_remove, work)


@dataclass(frozen=True)
class _Frozen:
    """What is known of a guest when its state has been written."""

    agent: int
    report: LintReport
    seconds: float
    """How long it stood still for that."""


async def _frozen(host: Hypervisor, spec: MachineSpec, work: Path) -> _Frozen:
    """Boot a machine and write its memory and state to `work`. One whose guest is lost, or tells a wrong time, is
    followed by another one.
    """
    for attempts_left in reversed(range(_ATTEMPTS)):
        await run_sync(_prepare, work, spec.memory_bytes, host.owner)
        try:
            return await _freeze(host, replace(spec, memory_file=work / MEMORY, memory_shared=True, state=None), work)
        except StartError as error:
            is_chance = isinstance(error.__cause__, GuestLost) or isinstance(error, _ClockWrong)
            if not is_chance or not attempts_left:
                raise
            log.warning("bake_failed", template=work.name, error=str(error), remedy="another machine is booted")
    raise AssertionError


async def _freeze(host: Hypervisor, spec: MachineSpec, work: Path) -> _Frozen:
    booted = time.monotonic()
    machine = await host.start(spec)
    try:
        async with open_vm(machine, ready_seconds=BOOT_SECONDS) as vm:
            log.info("template_booted", template=work.name, seconds=round(time.monotonic() - booted, 3))
            await _warm(vm)
            await check_clock(vm)
            report = (await lint(vm)).check()
            await vm.prepare(READY_SECONDS)
            started = time.monotonic()
            await vm.quiesce(READY_SECONDS)
            await machine.save(work / STATE)
            seconds = time.monotonic() - started
            assert vm.receipt is not None
            return _Frozen(vm.receipt.agent, report, seconds)
    except GuestLost as error:
        said = machine.console.last_line()
        said = f"{error}; its console ends with: {said}" if said else str(error)
        raise TemplateError(f"the golden guest was lost before its state was saved: {said}") from error


def publish(work: Path, target: Path) -> None:
    """Move a finished template into place; clones that still map what was there keep it. Blocks.

    Raises `TemplateError` or `HostResources` when the file system does not let it.
    """
    with _telling_what_is_wrong(target):
        if target.exists():
            grave = target.with_name(f".old-{target.name}")
            shutil.rmtree(grave, ignore_errors=True)
            target.rename(grave)
            shutil.rmtree(grave)
        work.rename(target)


@contextmanager
def _telling_what_is_wrong(path: Path) -> Iterator[None]:
    """Raise an error of ours where the file system refuses something within the context."""
    try:
        yield
    except SandboxError:
        raise
    except OSError as error:
        kind = HostResources if error.errno in (errno.ENOSPC, errno.EDQUOT) else TemplateError
        raise kind(f"a template cannot be made: {refused(error, path)}") from error


async def _warm(vm: VM) -> None:
    """Let the guest do once what callers will do, so that caches and page tables in the snapshot are warm."""
    for _ in range(_WARM_RUNS):
        await _answer(vm, _WARM_SCRIPT)


class _ClockWrong(TemplateError):
    """A guest cannot tell the time."""


async def check_clock(vm: VM) -> None:
    """Raise `TemplateError` if the guest's clock, which was right some seconds ago, is wrong now.

    Then its kernel has mistaken the rate of its processor's clock, as happens on busy hosts: clones would inherit that.
    """
    began = time.time()
    said = float(await _answer(vm, "import time\nprint(time.time())"))
    ended = time.time()
    if not began - _CLOCK_SECONDS <= said <= ended + _CLOCK_SECONDS:
        raise _ClockWrong(
            f"the guest's clock went wrong by {said - (began + ended) / 2:+.1f} s while the template was made; "
            "make it again when the host is less busy"
        )


async def _answer(vm: VM, script: str) -> str:
    result = await vm.run(script, timeout=READY_SECONDS)
    if not result.ok:
        raise TemplateError(f"the guest cannot run a simple script: {result.describe()}: {result.stderr[-500:]!r}")
    return result.text


def _prepare(work: Path, memory_bytes: int, owner: tuple[int, int] | None) -> None:
    """Make a work directory with an empty memory file and state file that QEMU may write.

    Its name follows from the template's, so what a killed bake has left is found and removed here.
    """
    make_directory(work.parent)
    free = shutil.disk_usage(work.parent).free
    if free < memory_bytes + _STATE_BYTES:  # QEMU would die of SIGBUS where the file system ends
        raise HostResources(
            f"a template needs {(memory_bytes + _STATE_BYTES) >> 20} MiB in {work.parent}, {free >> 20} are free; "
            "run `sandbox image prune`, use less --memory, or set SANDBOX_DATA_DIR"
        )
    shutil.rmtree(work, ignore_errors=True)
    make_directory(work, 0o711)
    for name in (MEMORY, STATE):
        descriptor = os.open(work / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            if name == MEMORY:
                allocate(descriptor, memory_bytes)
            if owner is not None:
                os.fchown(descriptor, *owner)
        finally:
            os.close(descriptor)


def _remove(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)


def _seal(work: Path) -> None:
    """Take the files away from QEMU's user and flush them."""
    for name in (MEMORY, STATE):
        descriptor = os.open(work / name, os.O_RDONLY)
        os.fchown(descriptor, os.geteuid(), os.getegid())
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
        os.close(descriptor)


def _digests(work: Path) -> dict[str, FileDigest]:
    return {name: FileDigest.of(work / name, is_final=True) for name in (MEMORY, STATE)}
