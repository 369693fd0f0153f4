"""Machines below the pool: restored, booted, refused, and what differs between clones."""

from __future__ import annotations

import dataclasses
import time
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from sandbox.cold_boot import ColdBoot
from sandbox.config import HostConfig
from sandbox.errors import HypervisorError
from sandbox.image.store import ImageStore
from sandbox.oneshot import run
from sandbox.template.template import Template

DRAW = """
import os, random, tempfile, uuid
print(os.urandom(16).hex(), uuid.uuid4(), random.random(), tempfile.mkdtemp())
print(open("/etc/machine-id").read(), open("/proc/sys/kernel/random/boot_id").read(), os.uname().nodename)
"""


async def test_cold_boot_is_a_source_like_any_other(template: Template) -> None:
    """The same call runs on a machine that was booted for it."""
    image = await run_sync(ImageStore(HostConfig().paths.images).find, "default")
    result = await run("print(6 * 7)", source=ColdBoot(template.host, image))
    assert result.stdout == b"42\n"


async def test_state_that_is_gone_is_a_typed_error(template: Template, tmp_path: Path) -> None:
    """QEMU's own refusal is told, and nothing is left: no domain, no promise, no group."""
    spec = dataclasses.replace(template.spec, state=tmp_path / "gone")
    with pytest.raises(HypervisorError, match=r"QEMU refuses migrate-incoming: Could not open .*gone"):
        await template.host.start(spec)
    assert await template.host.call(template.host.connection.domains) == []
    assert template.host.admission.ledger.own_mib == 0
    assert template.host.groups._groups == {}


async def test_clones_differ_in_everything_that_must(template: Template) -> None:
    """Randomness of kernel and Python, names, ids: no value occurs twice among clones of one template."""
    async with AsyncExitStack() as stack:
        clones = [await stack.enter_async_context(template.lease()) for _ in range(6)]
        words = [word for clone in clones for word in (await clone.run(DRAW)).check().text.split()]
    assert len(words) == 6 * 7
    assert len(set(words)) == len(words)


async def test_clock_of_a_clone_is_right(template: Template) -> None:
    """The guest's wall clock is the host's, within the error of asking."""
    async with template.lease() as vm:
        before = time.time()
        guest = float((await vm.run("import time; print(time.time())")).text)
        assert before - 0.5 <= guest <= time.time() + 0.5
        assert vm.receipt is not None
        assert abs(vm.receipt.clock_offset) <= 0.5


async def test_guest_writes_do_not_reach_the_template(template: Template) -> None:
    """The golden files are the same before and after a guest wrote wherever root can."""
    await run_sync(template.manifest.verify, template.directory, template.manifest.requirement)
    async with template.lease() as vm:
        script = "dd if=/dev/urandom of=/dev/vda bs=1M count=1; echo changed > /etc/passwd; head -c 50M /dev/zero > /x"
        result = await vm.exec(script, user="root", timeout=30)
        assert b"/dev/vda" in result.stderr
        assert (await vm.exec("cat /etc/passwd", user="0")).exit_code == 126, "that account is gone now"
    await run_sync(template.manifest.verify, template.directory, template.manifest.requirement)
    async with template.lease() as vm:
        assert b"user" in await vm.read_file("/etc/passwd")


async def test_state_that_cannot_be_loaded_is_refused_at_once(template: Template) -> None:
    """QEMU dies of a damaged state: libvirt says so within seconds, with its cause, and nothing is left."""
    state = template.directory.parent / "damaged-state"
    state.write_bytes(b"this is no saved state" * 100)
    state.chmod(0o644)
    started = time.monotonic()
    try:
        with pytest.raises(HypervisorError, match="did not start"):
            await template.host.start(dataclasses.replace(template.spec, state=state))
    finally:
        state.unlink()
    assert time.monotonic() - started < 5


async def test_missing_kernel_is_refused_with_its_path(template: Template) -> None:
    """A file that is not there is named, where a machine boots; a clone does without."""
    spec = dataclasses.replace(template.spec, memory_file=None, state=None, kernel=Path("/no/such/kernel"))
    with pytest.raises(HypervisorError, match="/no/such/kernel"):
        await template.host.start(spec)


async def test_a_booted_machine_runs_whatever_comes_first(template: Template) -> None:
    """Without a snapshot nothing is warm, and no process was made ahead: files, commands and code work all the same."""
    image = await run_sync(lambda: ImageStore(HostConfig().paths.images).find("default"))
    async with ColdBoot(template.host, image).lease() as vm:
        await vm.write_file("/tmp/first", b"1", user="root")
        assert (await vm.exec(["cat", "/tmp/first"])).text == "1"
        assert (await vm.run("import gc; gc.collect(); print(open('/tmp/first').read())")).text == "1\n"
        assert await vm.read_file("/tmp/first") == b"1"


async def test_an_idle_guest_leaves_its_host_alone(template: Template) -> None:
    """Its QEMU wakes some ten times a second, for the kernel's housekeeping; with a forgotten timer it is 250 times."""
    async with template.lease() as vm:
        await vm.run("print()")
        status = Path(f"/proc/{vm.pid}/status")
        wakes = 1000
        with anyio.move_on_after(30):
            while wakes >= 100:  # what the first run has left to do takes a moment
                before = _waits(status)
                await anyio.sleep(1)
                wakes = _waits(status) - before
        assert wakes < 100


def _waits(status: Path) -> int:
    return int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
