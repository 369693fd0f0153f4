"""Make a golden snapshot: boot once, warm the guest, bring it to rest, freeze it, publish it whole or not at all."""

from __future__ import annotations

import datetime
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

from anyio.to_thread import run_sync

from sandbox.errors import GuestLost, HostResources, TemplateError
from sandbox.hypervisor.host import Hypervisor
from sandbox.hypervisor.spec import MachineSpec
from sandbox.log import log
from sandbox.paths import make_directory
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
_STATE_BYTES = 4 * 1024 * 1024


async def bake(host: Hypervisor, spec: MachineSpec, requirement: Requirement, target: Path) -> None:
    """Publish a template for `requirement` at `target`, replacing what is there. The caller holds the target's lock.

    If this fails or is cancelled, no VM and no half-made template is left; what was at `target` stays.
    """
    work = await run_sync(_prepare, target, spec.memory_bytes, host.owner)
    try:
        booted = time.monotonic()
        blank = replace(spec, memory_file=work / MEMORY, memory_shared=True, state=None)
        machine = await host.start(blank)
        async with open_vm(machine, ready_seconds=BOOT_SECONDS) as vm:
            log.info("template_booted", template=target.name, seconds=round(time.monotonic() - booted, 3))
            await _warm(vm)
            started = time.monotonic()
            try:
                await vm.quiesce(READY_SECONDS)
            except GuestLost as error:
                raise TemplateError(f"the guest did not come to rest for the snapshot: {error}") from error
            await machine.save(work / STATE)
            freeze_seconds = time.monotonic() - started
            assert vm.receipt is not None
            agent = vm.receipt.agent
        await run_sync(_publish, work, target, requirement, agent, freeze_seconds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log.info("template_baked", template=target.name, freeze_seconds=round(freeze_seconds, 4))


async def _warm(vm: VM) -> None:
    """Let the guest do once what callers will do, so that caches and page tables in the snapshot are warm."""
    for _ in range(_WARM_RUNS):
        result = await vm.run(_WARM_SCRIPT, timeout=READY_SECONDS)
        if not result.ok:
            raise TemplateError(f"the guest cannot run a simple script: {result.describe()}: {result.stderr[-500:]!r}")


def _prepare(target: Path, memory_bytes: int, owner: tuple[int, int] | None) -> Path:
    """Make a work directory with an empty memory file and state file that QEMU may write.

    Its name follows from the target's, so what a killed bake has left is found and removed here.
    """
    make_directory(target.parent)
    free = shutil.disk_usage(target.parent).free
    if free < memory_bytes + _STATE_BYTES:  # QEMU would die of SIGBUS where the file system ends
        raise HostResources(
            f"a template needs {(memory_bytes + _STATE_BYTES) >> 20} MiB in {target.parent}, {free >> 20} are free; "
            "run `sandbox image prune`, use less --memory, or set SANDBOX_DATA_DIR"
        )
    work = target.with_name(f".bake-{target.name}")
    shutil.rmtree(work, ignore_errors=True)
    make_directory(work, 0o711)
    for name in (MEMORY, STATE):
        descriptor = os.open(work / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        if name == MEMORY:
            os.truncate(descriptor, memory_bytes)
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.close(descriptor)
    return work


def _publish(work: Path, target: Path, requirement: Requirement, agent: int, freeze_seconds: float) -> None:
    """Take the files away from QEMU's user, flush them, write the manifest last, move the directory into place."""
    for name in (MEMORY, STATE):
        descriptor = os.open(work / name, os.O_RDONLY)
        os.fchown(descriptor, os.geteuid(), os.getegid())
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
        os.close(descriptor)
    manifest = TemplateManifest(
        requirement=requirement,
        agent=agent,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        freeze_seconds=freeze_seconds,
        files={name: FileDigest.of(work / name) for name in (MEMORY, STATE)},
    )
    manifest.save(work)
    if target.exists():  # clones that still map the old memory file keep their inode
        grave = target.with_name(f".old-{target.name}")
        shutil.rmtree(grave, ignore_errors=True)
        target.rename(grave)
        shutil.rmtree(grave)
    work.rename(target)
