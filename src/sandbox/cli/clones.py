"""`sandbox doctor --clones`: two clones of the template, and the proof that they differ and know the time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from sandbox.cli.check import Check
from sandbox.cli.run import complete
from sandbox.config import HostConfig, TemplateConfig
from sandbox.errors import ProtocolError
from sandbox.guest.identity import Receipt
from sandbox.template.template import Template

_CLOCK_SECONDS = 0.5
_DRAW = """
import json, os, random, socket, tempfile, time, uuid
print(json.dumps({
    "time": time.time(),
    "draws": {
        "kernel randomness": os.urandom(16).hex(),
        "uuid4": str(uuid.uuid4()),
        "python's random": random.random(),
        "temporary names": tempfile.mktemp(),
        "machine id": open("/etc/machine-id").read(),
        "boot id": open("/proc/sys/kernel/random/boot_id").read(),
        "host name": socket.gethostname(),
    },
}))
"""


def examine_clones(config: HostConfig) -> Iterator[Check]:
    """Restore two clones at once and compare what each of them draws and says."""
    clones = complete(_draw_twice(config))
    first, second = (clone["draws"] for clone in clones)
    for name in first:
        if first[name] == second[name]:
            yield Check("clones", "fail", f"two clones have the same {name}", "sandbox image build --fresh")
    if all(first[name] != second[name] for name in first):
        yield Check("clones", "ok", f"two clones differ in {', '.join(first)}")
    worst = max((clone["offset"] for clone in clones), key=abs)
    status = "ok" if abs(worst) <= _CLOCK_SECONDS else "fail"
    yield Check("clock", status, f"{worst * 1000:+.1f} ms off at most, when the clones became ready")  # type: ignore[arg-type]
    receipts: list[Receipt] = [clone["receipt"] for clone in clones]
    for clone, receipt in zip(clones, receipts, strict=True):
        names = {name: clone["draws"][name].strip() for name in ("host name", "machine id", "boot id")}
        if list(names.values()) != [receipt.hostname, receipt.machine_id, receipt.boot_id]:
            yield Check("receipts", "fail", f"a clone calls itself {names}, its receipt says otherwise: {receipt}")
    if not all(receipt.randomness_renewed for receipt in receipts):
        yield Check("receipts", "fail", "a clone has not confirmed that its randomness was renewed")
    age = max(receipt.template_age or 0.0 for receipt in receipts)
    longest = max(receipt.timings["start"] for receipt in receipts)
    said = f"generation {receipts[0].generation} of {receipts[0].series}, {age:.0f} s old; restored in {longest:.3f} s"
    yield Check("receipts", "ok", f"randomness, names and clock confirmed by both; {said}")


async def _draw_twice(config: HostConfig) -> list[dict[str, Any]]:
    template = await Template.ensure(TemplateConfig(), config)

    async def draw() -> dict[str, Any]:
        async with template.lease() as vm:
            if vm.receipt is None:
                raise ProtocolError("a clone was given without a receipt")
            said = json.loads((await vm.run(_DRAW, timeout=60)).check().text)
            return {**said, "offset": vm.receipt.clock_offset, "receipt": vm.receipt}

    return list(await asyncio.gather(draw(), draw()))
