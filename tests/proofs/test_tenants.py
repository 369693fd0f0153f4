"""One caller after another: nothing of the first is found by the second, on the host, or in the template."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from mmap import ACCESS_READ, mmap
from pathlib import Path

import anyio
import pytest

from sandbox.bench.environment import environment
from sandbox.config import HostConfig, PoolConfig
from sandbox.hypervisor import starter
from sandbox.hypervisor.domain_xml import domain_xml
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template
from sandbox.vm import BOOT_SECONDS, open_vm
from tests.conftest import PROGRAMS
from tests.proofs.canary import MARK, Canary, find_outside
from tests.proofs.canary_record import CanaryRecord

PAIRS = int(os.environ.get("SANDBOX_CANARY_PAIRS", "2"))
EVIDENCE = os.environ.get("SANDBOX_CANARY_EVIDENCE")
AT_ONCE = 3
INSIDE = 2
"""So many pairs have everything searched from inside too; that takes some seconds each under emulation."""
KEPT_EVERY = 20
WRITE = (PROGRAMS / "write_devices.py").read_text()


@pytest.mark.timeout(120 + 10 * PAIRS)
async def test_the_next_tenant_finds_nothing(template: Template, capsys: pytest.CaptureFixture[str]) -> None:
    """A canary in files, memory, environment, keyring, kernel log and a port is found in its own VM, never in the next.

    The search of the first VM is the control: a VM that was lent twice would give all of it away. In the second VM the
    secrets of all earlier tenants are sought. What both have mapped from template and image is searched at the end.
    """
    path = Path(EVIDENCE) if EVIDENCE else None
    record = await asyncio.to_thread(CanaryRecord.load, path, PAIRS)
    record.environments.append(await asyncio.to_thread(environment, template.host, template.spec))
    numbers = iter(range(record.pairs, PAIRS))
    before, started = record.seconds, time.monotonic()

    async def one_after_another(pool: VMPool) -> None:
        for number in numbers:
            await _pair(pool, record, from_inside=number < INSIDE)
            record.seconds = before + time.monotonic() - started
            if path is not None and record.pairs % KEPT_EVERY == 0:
                record.save(path)

    config = PoolConfig(min_size=1, max_size=AT_ONCE + 1, warm_up=False)
    async with VMPool(config, source=template) as pool, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_another(pool))
    shared = [template.directory, template.spec.root.parent]
    record.found += [f"file {name}" for name in await asyncio.to_thread(_in_files, shared, MARK)]
    if path is not None:
        await asyncio.to_thread(record.save, path)
    with capsys.disabled():
        print(f"\n{record.describe()}")  # noqa: T201 - a figure
    assert record.missed == [], "the control: the searches must find all that was planted"
    assert record.found == []


async def _pair(pool: VMPool, record: CanaryRecord, *, from_inside: bool) -> None:
    canary = Canary()
    async with pool.acquire(timeout=60) as vm:
        first = vm.name
        planted = await canary.plant(vm)
        found = await canary.find_inside(vm, canary.text, everything=from_inside)
        if (await find_outside(vm, canary.text)).found:
            found.add("memory")
        record.missed += sorted(planted - found)
        record.note_control(found)
    async with pool.acquire(timeout=60) as vm:
        assert vm.name != first
        search = await find_outside(vm, MARK)
        record.found += [*search.found, *await canary.find_inside(vm, MARK, everything=from_inside)]
        record.note_searched(search.searched_bytes >> 20)
    record.pairs += 1
    record.searched_inside += from_inside


async def test_nothing_of_a_lease_stays_on_the_host(
    template: Template, host_config: HostConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """After a lease neither its canary nor its VM's name is in a run directory, the template, the image, or the log."""
    caplog.set_level(logging.DEBUG)
    canary = Canary()
    async with VMPool(PoolConfig(min_size=0, max_size=1, warm_up=False), source=template) as pool:
        async with pool.acquire(timeout=60) as vm:
            name = vm.name
            await canary.plant(vm)
            await vm.run("import os; os.environ['SECRET']", env={"SECRET": canary.text})
            await vm.write_file("secret", canary.text.encode())
            assert (await find_outside(vm, canary.text)).found, "the control: it is in the living VM's memory"
            assert await asyncio.to_thread(_named, host_config.runtime_dir, name), "the control: there is such a path"
        with anyio.fail_after(5):  # libvirt's threads drop their files a moment later
            while await asyncio.to_thread(_named, host_config.runtime_dir, name):  # noqa: ASYNC110 - no events for that
                await anyio.sleep(0.02)
    directories = [host_config.runtime_dir, template.directory, template.spec.root.parent]
    assert await asyncio.to_thread(_in_files, directories, canary.text) == []
    assert canary.text not in caplog.text


async def test_no_guest_changes_what_others_start_from(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root of several guests writes to all block devices: image and template keep every byte; a writable disk does not.

    The control is the same machine with a disk that QEMU may write.
    """
    before = await asyncio.to_thread(_digests, template)
    for _ in range(3):
        async with template.lease() as vm:
            report = json.loads((await vm.run(WRITE, args=["a5" * 32], user="root", timeout=60)).check().text)
            assert report["written"] == []
            assert report["refused"] > 0
    assert await asyncio.to_thread(_digests, template) == before

    copy = template.directory.parent / f"test-root-{os.getpid()}"
    await asyncio.to_thread(_writable_copy, template, copy)
    monkeypatch.setattr(
        starter, "domain_xml", lambda *given, **named: domain_xml(*given, **named).replace("<readonly/>", "")
    )
    try:
        original = await asyncio.to_thread(_digest, copy)
        spec = replace(template.spec, root=copy, memory_file=None, state=None)
        async with open_vm(await template.host.start(spec), ready_seconds=BOOT_SECONDS) as vm:
            report = json.loads((await vm.run(WRITE, args=["a5" * 32], user="root", timeout=60)).check().text)
        assert report["written"]
        assert await asyncio.to_thread(_digest, copy) != original
    finally:
        copy.unlink()


def _writable_copy(template: Template, copy: Path) -> None:
    shutil.copy(template.spec.root, copy)
    copy.chmod(0o600)
    if template.host.owner is not None:
        os.chown(copy, *template.host.owner)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(template: Template) -> dict[str, str]:
    """Digests of everything that clones of this template are made from."""
    spec = template.spec
    files = [spec.kernel, spec.initrd, spec.root, *sorted(template.directory.iterdir())]
    return {str(path): _digest(path) for path in files}


def _files(directories: list[Path]) -> Iterator[Path]:
    for directory in directories:
        for path in directory.rglob("*"):
            try:
                status = path.lstat()
            except FileNotFoundError:  # another process's VM has ended meanwhile
                continue
            if stat.S_ISREG(status.st_mode) and status.st_size:
                yield path


def _in_files(directories: list[Path], canary: str) -> list[str]:
    """Return the files that hold the canary, as bytes or as text."""
    wanted = bytes.fromhex(canary), canary.encode()
    found = []
    for path in _files(directories):
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            if any(content.find(form) >= 0 for form in wanted):
                found.append(str(path))
    return found


def _named(directory: Path, name: str) -> list[str]:
    return [str(path) for path in directory.rglob(f"{name}[!0-9]*")]
