"""The figures of machines that come up: cold boot, freeze, restore."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.bench.figure import Figure
from sandbox.bench.raw import raw_drivers
from sandbox.cold_boot import ColdBoot
from sandbox.config import HostConfig
from sandbox.image.build import current_image
from sandbox.image.recipe import load_recipe
from sandbox.image.store import Image, ImageStore
from sandbox.template.bake import bake
from sandbox.template.manifest import TemplateManifest

if TYPE_CHECKING:
    from sandbox.bench.suite import Suite


def minimal_image() -> Image | None:
    """Return the default image on the minimal kernel, if it was built and is up to date."""
    return current_image(load_recipe("default").with_kernel("minimal"), ImageStore(HostConfig().paths.images))


def boots(suite: Suite) -> dict[str, ColdBoot]:
    """Return what boots each kernel that there is, by the id of its figure."""
    image = ImageStore(HostConfig().paths.images).find(suite.template.manifest.requirement.image)
    sources = {"B1": ColdBoot(suite.template.host, image)}
    if (other := minimal_image()) is not None:
        sources["B2"] = ColdBoot(suite.template.host, other)
    return sources


async def cold_boot(suite: Suite) -> Figure:
    """Without a snapshot: kernel, init, agent. In turn with the minimal kernel, where there is one."""
    figure = suite.figure("B1", "cold boot, Debian's kernel", "QEMU up (T2) → agent ready (T4)")
    minimal = suite.figure("B2", "cold boot, minimal kernel", "QEMU up (T2) → agent ready (T4)")
    sources = boots(suite)
    if "B2" in sources:
        suite.keep(minimal)
    for _ in range(suite.n(10)):
        for ident, source in sources.items():
            async with source.lease() as vm:
                (figure if ident == "B1" else minimal).samples.append(vm.timings["ready"])
    return figure


async def minimal_boot(suite: Suite) -> Figure:
    """Measured with B1."""
    await suite.measured("B1")
    return await suite.measured("B2")


async def boot_spread(suite: Suite) -> Figure:
    """How much cold boots differ."""
    boots = await suite.measured("B1")
    figure = suite.figure("B3", "spread of cold boots", "coefficient of variation of B1's samples", "ratio")
    figure.samples.append(boots.cv)
    return figure


async def freeze(suite: Suite) -> Figure:
    """How long the golden machine stands still until its state is on disk."""
    figure = suite.figure("S1", "golden freeze", "running guest → device state on disk")
    template = suite.template
    with tempfile.TemporaryDirectory(dir=template.directory.parent, prefix=".bench-") as directory:
        Path(directory).chmod(0o711)
        for _ in range(suite.n(5)):
            target = Path(directory) / "template"
            await bake(template.host, template.spec, template.manifest.requirement, target)
            manifest = TemplateManifest.load(target)
            assert manifest is not None
            figure.samples.append(manifest.freeze_seconds)
    return figure


async def restore(suite: Suite) -> Figure:
    """In turn with the floor: QEMU driven by a minimal script."""
    figure = suite.figure("S3", "restore → agent answers", "call (T1) → identity confirmed (T4)")
    await sample_restores(suite, figure, suite.n(40))
    return figure


async def sample_restores(suite: Suite, figure: Figure, number: int) -> None:
    """Restore so many times and twice more, which do not count, each time after the floor."""
    async with raw_drivers(suite.template) as (raw,):
        for index in range(number + 2):
            floor = await asyncio.to_thread(raw.restore)
            started = time.monotonic()
            async with suite.template.lease():
                ours = time.monotonic() - started
            if index >= 2:
                figure.samples.append(ours)
                figure.raw_samples.append(floor)


async def overhead(suite: Suite) -> Figure:
    """What libvirt and this library cost over QEMU's own monitor, pair by pair."""
    restores = await suite.measured("S3")
    figure = suite.figure("L1", "restore over raw QEMU", "S3 ÷ floor, each pair", "ratio")
    figure.samples += [ours / floor for ours, floor in zip(restores.samples, restores.raw_samples, strict=True)]
    return figure


async def restore_and_run(suite: Suite) -> Figure:
    """A clone's first command, with every cache of the guest and of the emulator cold."""
    figure = suite.figure("S4", "restore → first command done", "call (T1) → result (T5)")
    for index in range(suite.n(30) + 1):
        started = time.monotonic()
        async with suite.template.lease() as vm:
            (await vm.run("print(6 * 7)")).check()
            if index:
                figure.samples.append(time.monotonic() - started)
    return figure


async def pause(suite: Suite) -> Figure:
    """A warm VM is stopped."""
    return (await _pauses(suite))[0]


async def resume(suite: Suite) -> Figure:
    """It runs again, with the right clock and fresh randomness."""
    return (await _pauses(suite))[1]


async def _pauses(suite: Suite) -> tuple[Figure, Figure]:
    stopping = suite.figure("S8PAUSE", "pause", "call → processors stopped")
    waking = suite.figure("S8RESUME", "resume", "call → clock and randomness renewed")
    async with suite.template.warmed().lease() as vm:
        for index in range(suite.n(50) + 2):
            begun = time.monotonic()
            await vm.pause()
            stopped = time.monotonic()
            await vm.resume()
            if index >= 2:
                stopping.samples.append(stopped - begun)
                waking.samples.append(time.monotonic() - stopped)
    return stopping, waking
