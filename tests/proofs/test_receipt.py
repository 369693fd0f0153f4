"""The receipt that comes with every VM: what it proved, where it comes from, how long it took."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest
from anyio.to_thread import run_sync

from sandbox.cold_boot import ColdBoot
from sandbox.config import HostConfig, PoolConfig
from sandbox.errors import StateError
from sandbox.guest.identity import Receipt
from sandbox.image.store import ImageStore
from sandbox.pool.pool import VMPool
from sandbox.template import bake
from sandbox.template.template import Template
from sandbox.vm import VM

_NAMES = """
import json, socket
print(json.dumps([socket.gethostname(), open("/etc/machine-id").read().strip(),
                  open("/proc/sys/kernel/random/boot_id").read().strip()]))
"""


async def _check_names(vm: VM, receipt: Receipt) -> None:
    said = json.loads((await vm.run(_NAMES)).check().text)
    assert said == [receipt.hostname, receipt.machine_id, receipt.boot_id]


async def test_receipt_of_a_clone(template: Template) -> None:
    """Generation and age of the template, names that the guest confirms itself, the clock, the stages."""
    receipts = []
    for _ in range(2):
        async with template.lease() as vm:
            receipt = vm.receipt
            assert receipt is not None
            assert (receipt.origin, receipt.generation) == ("restore", template.generation)
            assert receipt.randomness_renewed
            assert receipt.template_age is not None
            assert receipt.template_age > 0
            assert abs(receipt.clock_offset_ms) <= 500
            assert receipt.timings["start"] > 0
            await _check_names(vm, receipt)
            receipts.append(receipt)
    first, second = receipts
    assert first.template_age is not None
    assert second.template_age is not None
    assert first.template_age < second.template_age
    for name in ("hostname", "machine_id", "boot_id", "epoch"):
        assert getattr(first, name) != getattr(second, name)


async def test_receipt_of_a_lease_tells_a_hit_from_a_restore(template: Template) -> None:
    """A VM that was ready is a hit, one that was waited for is not; a paused one proves itself again."""
    config = PoolConfig(min_size=2, max_size=2, running_ready=1)
    async with VMPool(config, source=template) as pool:
        await pool.wait_ready()
        first, second = await pool.claim(30), await pool.claim(30)
        assert first.receipt is not None
        assert second.receipt is not None
        assert (first.receipt.origin, first.receipt.timings["queue"]) == ("hit", 0.0)
        assert second.receipt.origin == "restore"
        assert second.receipt.timings["queue"] > 0
        assert first.receipt == first.vm.receipt
        await _check_names(second.vm, second.receipt)
        assert second.receipt.generation == template.generation
        await first.release()
        await second.release()
        assert first.receipt.hostname == first.vm.name


async def test_receipt_of_a_boot_names_no_template(template: Template) -> None:
    """A cold boot proves the same, and has no generation."""
    images = ImageStore(HostConfig().paths.images)
    image = await run_sync(images.find, template.manifest.requirement.image)
    async with ColdBoot(template.host, image).lease() as vm:
        receipt = vm.receipt
        assert receipt is not None
        assert (receipt.origin, receipt.series, receipt.generation, receipt.template_age) == ("boot", None, None, None)
        assert receipt.timings["ready"] > 0


async def test_what_was_lent_never_becomes_a_template(template: Template) -> None:
    """A VM from any source refuses to be brought to rest, and a bake takes no machine, only what one consists of."""
    async with template.lease() as vm:
        with pytest.raises(StateError, match="nobody has used"):
            await vm.quiesce(5)
        with pytest.raises(StateError, match="nobody has used"):
            await vm.prepare(5)
        assert (await vm.run("print(1)")).text == "1\n"
    async with VMPool(PoolConfig(min_size=1), source=template) as pool, pool.acquire(30) as vm:
        with pytest.raises(StateError, match="nobody has used"):
            await vm.quiesce(5)
    for function in (bake.bake, bake.unpublished):
        kinds = {str(parameter.annotation) for parameter in inspect.signature(function).parameters.values()}
        assert kinds == {"Hypervisor", "MachineSpec", "Requirement", "Path", "str", "int"}


@pytest.mark.usefixtures("template")
def test_receipt_on_the_command_line() -> None:
    """`exec --json` has it under a key; `doctor --clones` says what two clones' receipts say."""
    command = [sys.executable, "-m", "sandbox", "exec", "--json", "-c", _NAMES]
    envelope = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    receipt = envelope["receipt"]
    assert json.loads(envelope["stdout"]) == [receipt["hostname"], receipt["machine_id"], receipt["boot_id"]]
    assert (receipt["origin"], receipt["randomness_renewed"]) == ("restore", True)
    assert receipt["generation"] >= 1
    command = [sys.executable, "-m", "sandbox", "doctor", "--clones", "--json"]
    checks = json.loads(subprocess.run(command, check=False, capture_output=True, timeout=60).stdout)["checks"]
    (found,) = [check for check in checks if check["name"] == "receipts"]
    assert found["status"] == "ok"
    assert f"generation {receipt['generation']} of {receipt['series']}" in found["found"]
