"""Fixtures are the stages of a VM's life: template, restored VM, pool. All of them are real."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from blockbuster import BlockBuster

from sandbox.cli.inventory import find_leaks
from sandbox.config import HostConfig, PoolConfig, TemplateConfig
from sandbox.errors import HypervisorError
from sandbox.hypervisor.facts import load_facts
from sandbox.hypervisor.process import Process
from sandbox.pool.pool import VMPool
from sandbox.template.template import Template
from sandbox.vm import VM

PROGRAMS = Path(__file__).parent / "programs"

# A suite that a shell runs in the background ignores interrupts, one below `nohup` a terminal that goes; and so would
# every command of it that gets such a signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """A library call that blocks the event loop fails the test that made it."""
    blockbuster = BlockBuster("sandbox")
    # The CLI and the benchmarks own their event loop and may block it between steps.
    for function in blockbuster.functions.values():
        function.can_block_in("sandbox/cli", {"_load"})
    blockbuster.activate()
    yield
    blockbuster.deactivate()


@pytest.fixture(autouse=True)
def _no_defect_is_hidden(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A pool outlives an exception that nobody foresaw; a test that provokes one clears `caplog` to pass."""
    yield
    hidden = [record.getMessage() for record in caplog.get_records("call")]
    assert not [message for message in hidden if "report this as a defect" in message]


@pytest.fixture(autouse=True, scope="session")
def _audit_is_clean() -> Iterator[None]:
    """After all tests, nothing on this host belongs to nobody."""
    yield
    assert find_leaks(HostConfig()) == []


@pytest.fixture(autouse=True, scope="session")
def _emulation_is_a_choice() -> None:
    """What `auto` would take is asked for, so that no command of the tests warns that it emulates."""
    config = HostConfig()
    with suppress(HypervisorError):  # tests without VMs need no QEMU
        accelerator = load_facts(config.data_dir.resolve() / "host").accelerator(config.accelerator)
        os.environ.setdefault("SANDBOX_ACCELERATOR", accelerator)


@pytest.fixture(scope="session")
async def template() -> Template:
    """The golden snapshot of the default image, or of the one that was asked for, baked if need be."""
    return await Template.ensure(TemplateConfig(image=os.environ.get("SANDBOX_TEST_IMAGE", "default")))


@pytest.fixture
async def vm(template: Template) -> AsyncIterator[VM]:
    """One fresh clone."""
    async with template.lease() as vm:
        yield vm


@pytest.fixture
def host_config() -> HostConfig:
    return HostConfig()


@pytest.fixture
async def pool(template: Template) -> AsyncIterator[VMPool]:
    """An open pool with two VMs ready."""
    async with VMPool(PoolConfig(min_size=2, max_size=4), source=template) as pool:
        await pool.wait_ready()
        yield pool


@pytest.fixture(autouse=True)
async def _nothing_is_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """After every test that uses VMs: no QEMU of ours runs, no socket is left, libvirt knows no domain of ours."""
    yield
    if "template" not in request.fixturenames:
        return
    template: Template = request.getfixturevalue("template")
    host = template.host
    with anyio.fail_after(5):  # libvirt drops its record of a dead VM within 0.2 s
        while names := await host.call(host.connection.domains):
            logging.getLogger("tests").info("libvirt still knows %s", names)
            await anyio.sleep(0.02)
    assert not [process.pid for process in await anyio.to_thread.run_sync(Process.find, f"{host.rundir.path}/")]
    assert [path.name for path in host.rundir.path.glob("*.sock")] == []
