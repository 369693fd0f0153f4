"""The figures: what each one measures, through the public interface, with real virtual machines."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from sandbox.bench import programs
from sandbox.bench.figure import Figure
from sandbox.bench.raw import RawDriver
from sandbox.cold_boot import ColdBoot
from sandbox.config import HostConfig, PoolConfig, TemplateConfig
from sandbox.image.store import ImageStore
from sandbox.pool.pool import VMPool
from sandbox.template.bake import bake
from sandbox.template.manifest import TemplateManifest
from sandbox.template.template import Template

Progress = Callable[[str], None]
MIB = 1024 * 1024


class Suite:
    """Measures figures on this host. Warm-up runs come first and do not count."""

    def __init__(self, template: Template, samples: int | None, progress: Progress) -> None:
        self.template = template
        self._samples = samples
        self._progress = progress
        self._accelerator = template.host.platform.accelerator

    def figure(self, ident: str, name: str, boundary: str, unit: str = "seconds") -> Figure:
        return Figure(ident, name, boundary, unit, self._accelerator)

    def n(self, default: int) -> int:
        return self._samples or default

    async def measure(self, ident: str) -> Figure:
        """Return the figure with this id."""
        self._progress(f"measuring {ident}")
        return await FIGURES[ident](self)

    def _pool(self, size: int, spare: int = 2) -> VMPool:
        config = PoolConfig(min_size=size, max_size=size + spare)
        return VMPool(config, source=self.template.warmed())

    async def cold_boot(self) -> Figure:
        figure = self.figure("B1", "cold boot, Debian's kernel", "QEMU up (T2) → agent ready (T4)")
        image = ImageStore(HostConfig().paths.images).find(self.template.manifest.requirement.image)
        source = ColdBoot(self.template.host, image)
        for _ in range(self.n(10)):
            async with source.lease() as vm:
                figure.samples.append(vm.timings["ready"])
        return figure

    async def freeze(self) -> Figure:
        figure = self.figure("S1", "golden freeze", "running guest → device state on disk")
        template = self.template
        with tempfile.TemporaryDirectory(dir=template.directory.parent, prefix=".bench-") as directory:
            Path(directory).chmod(0o711)
            for _ in range(self.n(5)):
                target = Path(directory) / "template"
                await bake(template.host, template.spec, template.manifest.requirement, target)
                manifest = TemplateManifest.load(target)
                assert manifest is not None
                figure.samples.append(manifest.freeze_seconds)
        return figure

    async def restore(self) -> Figure:
        figure = self.figure("S3", "restore → agent answers", "call (T1) → identity confirmed (T4)")
        with tempfile.TemporaryDirectory(prefix="sandbox-raw-") as directory:
            Path(directory).chmod(0o711)
            async with self.template.lease() as vm:
                raw = RawDriver(vm.pid, self.template.directory / "state", Path(directory))
            for index in range(self.n(40) + 2):
                floor = await asyncio.to_thread(raw.restore)
                started = time.monotonic()
                async with self.template.lease():
                    ours = time.monotonic() - started
                if index >= 2:
                    figure.samples.append(ours)
                    figure.raw_samples.append(floor)
        return figure

    async def restore_and_run(self) -> Figure:
        figure = self.figure("S4", "restore → first command done", "call (T1) → result (T5)")
        for index in range(self.n(30) + 1):
            started = time.monotonic()
            async with self.template.lease() as vm:
                (await vm.run("print(6 * 7)")).check()
                if index:
                    figure.samples.append(time.monotonic() - started)
        return figure

    async def claim(self) -> Figure:
        figure = self.figure("A1", "claim from the warm pool", "call (T0) → VM claimed (T1), pool hits only")
        async with self._pool(4) as pool:
            while len(figure.samples) < self.n(50):
                await pool.wait_ready()
                hits = pool.statistics().hits
                started = time.monotonic()
                lease = await pool.claim()
                seconds = time.monotonic() - started
                if pool.statistics().hits == hits + 1:
                    figure.samples.append(seconds)
                await lease.release()
        return figure

    async def claim_and_run(self) -> Figure:
        figure = self.figure("A3", "claim → first command's result", "call (T0) → result (T6), pool hits only")
        async with self._pool(4) as pool:
            while len(figure.samples) < self.n(40):
                await pool.wait_ready()
                hits = pool.statistics().hits
                started = time.monotonic()
                async with pool.acquire() as vm:
                    (await vm.run("print(6 * 7)")).check()
                    seconds = time.monotonic() - started
                if pool.statistics().hits == hits + 1:
                    figure.samples.append(seconds)
        return figure

    async def refill(self) -> Figure:
        figure = self.figure("A4", "refill of one VM after a release", "release → pool full again, warm-up included")
        async with self._pool(2, spare=0) as pool:
            for _ in range(self.n(30)):
                await pool.wait_ready()
                lease = await pool.claim()
                started = time.monotonic()
                await lease.release()
                await pool.wait_ready()
                figure.samples.append(time.monotonic() - started)
        return figure

    async def ten_agents(self) -> Figure:
        figure = self.figure("E2", "ten agents at once, a VM each", "first call (T0) → last result (T6), pool of ten")
        async with self._pool(10) as pool:
            for _ in range(self.n(5)):
                await pool.wait_ready()
                started = time.monotonic()
                results = await asyncio.gather(*(pool.run(f"print({index})") for index in range(10)))
                figure.samples.append(time.monotonic() - started)
                for result in results:
                    result.check()
        return figure

    async def workflow(self) -> Figure:
        figure = self.figure("E5", "code + 1 MiB in, run, 1 MiB out, release", "call (T0) → VM destroyed")
        data = os.urandom(MIB)
        code = "data = open('in', 'rb').read(); open('out', 'wb').write(data[::-1])"
        async with self._pool(2) as pool:
            for _ in range(self.n(15)):
                await pool.wait_ready()
                started = time.monotonic()
                async with pool.acquire() as vm:
                    await vm.write_file("in", data)
                    (await vm.run(code)).check()
                    assert await vm.read_file("out") == data[::-1]
                figure.samples.append(time.monotonic() - started)
        return figure

    async def command(self) -> Figure:
        figure = self.figure("C1", "`sandbox exec hello.py`, nothing running", "process start (T0) → process end")
        with tempfile.TemporaryDirectory() as directory:
            script = Path(directory) / "hello.py"
            script.write_text("print('hello')\n")
            argv = [sys.executable, "-m", "sandbox", "exec", str(script)]
            for index in range(self.n(10) + 1):
                started = time.monotonic()
                done = await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True)
                if done.stdout != b"hello\n":
                    raise RuntimeError(f"the command printed {done.stdout!r}")
                if index:
                    figure.samples.append(time.monotonic() - started)
        return figure


FIGURES: dict[str, Callable[[Suite], Awaitable[Figure]]] = {
    "B1": Suite.cold_boot,
    "S1": Suite.freeze,
    "S3": Suite.restore,
    "S4": Suite.restore_and_run,
    "A1": Suite.claim,
    "A3": Suite.claim_and_run,
    "A4": Suite.refill,
    "E2": Suite.ten_agents,
    "E5": Suite.workflow,
    "E1": programs.round_trip,
    "E6UP": programs.upload,
    "E6DOWN": programs.download,
    "E7": programs.overshoot,
    "C1": Suite.command,
    "C2": programs.memory_per_vm,
}


async def run_suite(ids: list[str], samples: int | None, progress: Progress) -> tuple[Template, list[Figure]]:
    """Measure the figures with these ids, one after another, on the default template."""
    template = await Template.ensure(TemplateConfig(), HostConfig())
    suite = Suite(template, samples, progress)
    return template, [await suite.measure(ident) for ident in ids]
