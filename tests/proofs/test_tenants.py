"""One caller after another: nothing of the first is found by the second, on the host, or in the template."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from mmap import ACCESS_READ, mmap
from pathlib import Path

import anyio
import pytest

from sandbox.config import HostConfig, PoolConfig
from sandbox.guest.events import Output
from sandbox.hypervisor import starter
from sandbox.hypervisor.domain_xml import domain_xml
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template
from sandbox.vm import BOOT_SECONDS, VM, open_vm
from tests.conftest import PROGRAMS

PAIRS = int(os.environ.get("SANDBOX_CANARY_PAIRS", "2"))
AT_ONCE = 2
PLANT, FIND, WRITE = (
    (PROGRAMS / name).read_text() for name in ("plant_canary.py", "find_canary.py", "write_devices.py")
)


async def _plant(vm: VM, canary: str, port: int) -> set[str]:
    """Leave the canary in the VM as a careless tenant would; return where it lies."""
    execution = await vm.spawn(["python3", "-c", PLANT, canary, str(port)], user="root", timeout=600)
    async for event in execution.events():
        if isinstance(event, Output) and event.stream == "stdout":
            return set(event.data.decode().strip().split(","))
    raise AssertionError(f"the canary was not planted: {await execution.wait()}")


async def _find(vm: VM, canary: str, port: int) -> Mapping[str, int]:
    """Look for the canary as root, in two halves so that the search itself holds no copy of it."""
    half = len(canary) // 2
    result = await vm.run(FIND, args=[canary[:half], canary[half:], str(port)], user="root", timeout=120)
    found: dict[str, int] = json.loads(result.check().text)
    return found


@pytest.mark.timeout(60 + 60 * PAIRS)
async def test_the_next_tenant_finds_nothing(template: Template, capsys: pytest.CaptureFixture[str]) -> None:
    """A canary in files, memory, environment, keyring, kernel log and a port is found in its own VM, never in the next.

    The search of the first VM is the control: a VM that was lent twice would give all of it away.
    """
    planted_places: set[str] = set()
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def one_pair(pool: VMPool) -> None:
        canary, port = secrets.token_hex(32), 1024 + secrets.randbelow(60000)
        async with limiter:
            async with pool.acquire(timeout=60) as vm:
                first = vm.name
                planted = await _plant(vm, canary, port)
                missed = planted - set(await _find(vm, canary, port))
                assert not missed, "the control: the search must find all that was planted"
                planted_places.update(planted)
            async with pool.acquire(timeout=60) as vm:
                assert vm.name != first
                assert await _find(vm, canary, port) == {}

    config = PoolConfig(min_size=1, max_size=AT_ONCE + 1, warm_up=False)
    async with VMPool(config, source=template) as pool, asyncio.TaskGroup() as group:
        for _ in range(PAIRS):
            group.create_task(one_pair(pool))
    with capsys.disabled():
        print(f"\ncanaries: 0 of N = {PAIRS} found by the next tenant; the control found {sorted(planted_places)}")  # noqa: T201


async def test_nothing_of_a_lease_stays_on_the_host(
    template: Template, host_config: HostConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """After a lease neither its canary nor its VM's name is in a run directory, the template, the image, or the log."""
    caplog.set_level(logging.DEBUG)
    canary = secrets.token_hex(32)
    async with VMPool(PoolConfig(min_size=0, max_size=1, warm_up=False), source=template) as pool:
        async with pool.acquire(timeout=60) as vm:
            name, pid = vm.name, vm.pid
            await _plant(vm, canary, 4242)
            await vm.run("import os; os.environ['SECRET']", env={"SECRET": canary})
            await vm.write_file("secret", canary.encode())
            assert await asyncio.to_thread(_in_memory, pid, canary), "the control: it is in the living VM's memory"
            assert await asyncio.to_thread(_named, host_config.runtime_dir, name), "the control: there is such a path"
        with anyio.fail_after(5):  # libvirt's threads drop their files a moment later
            while await asyncio.to_thread(_named, host_config.runtime_dir, name):  # noqa: ASYNC110 - no events for that
                await anyio.sleep(0.02)
    directories = [host_config.runtime_dir, template.directory, template.spec.root.parent]
    assert await asyncio.to_thread(_in_files, directories, canary) == []
    assert canary not in caplog.text


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


def _in_memory(pid: int, canary: str) -> bool:
    """Whether a process's memory holds the canary."""
    wanted = bytes.fromhex(canary)
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, permissions, *_ = line.split()
            if not permissions.startswith("rw"):
                continue
            start, end = (int(number, 16) for number in span.split("-"))
            memory.seek(start)
            try:
                if wanted in memory.read(end - start):
                    return True
            except OSError:  # a mapping of a device
                continue
    return False


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
