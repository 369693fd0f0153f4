"""Generations of real templates: drift, roll-over under load, return, what stays on disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from sandbox.config import HostConfig, PoolConfig, TemplateConfig
from sandbox.errors import HypervisorError, TemplateError
from sandbox.event import EventKind, LifeEvent
from sandbox.image.store import Image, ImageStore
from sandbox.pool.pool import VMPool
from sandbox.template.drift import Sight, drift_of
from sandbox.template.hold import Hold
from sandbox.template.manifest import STATE, TemplateManifest
from sandbox.template.store import TemplateStore, plain
from sandbox.template.template import Template
from tests.adversity.test_template import REQUIREMENT, baked  # noqa: F401 - a fixture

NAME = f"test-drift-{os.getpid()}"
MEMORY_MIB = 160


class Publisher:
    """Publishes images of one name that differ in nothing but their digest."""

    def __init__(self, store: ImageStore, pattern: Image) -> None:
        self.store = store
        self._pattern = pattern
        self._count = 0

    def publish(self) -> Image:
        self._count += 1
        manifest = self._pattern.manifest.model_copy(update={"name": NAME, "inputs": f"{self._count:064x}"})
        with self.store.locked(lambda: None), self.store.building() as work:
            target = work / "image"
            target.mkdir()
            for name in manifest.files:
                (target / name).hardlink_to(self._pattern.directory / name)
            return self.store.publish(target, manifest)


@pytest.fixture
def publisher(template: Template) -> Iterator[Publisher]:
    """An image name of this test's own, with one image."""
    store = ImageStore(HostConfig().paths.images)
    pattern = store.find(template.manifest.requirement.image)
    publisher = Publisher(store, pattern)
    publisher.publish()
    yield publisher
    images = [image for image in store.ls() if image.name == NAME]
    (store.directory / "names" / NAME).unlink()
    for image in images:
        store.place_of_inputs(image.manifest.inputs).unlink(missing_ok=True)
    for image in images:  # not `prune`: other tests may be between building an image and naming it
        shutil.rmtree(image.directory)


@pytest.fixture
async def config(publisher: Publisher) -> AsyncIterator[PoolConfig]:
    """A pool whose template belongs to nobody else; its generations are removed afterwards."""
    yield PoolConfig(
        template=TemplateConfig(image=NAME, memory_mib=MEMORY_MIB),
        min_size=2,
        max_size=5,
        running_ready=2,
        template_check_interval=0.5,
        canary_slowdown=10,
    )
    store = TemplateStore(HostConfig().paths.templates)
    of_series = [one for one in await run_sync(store.ls) if plain(one.manifest.series) == f"{NAME}-{MEMORY_MIB}m-1c"]
    for stored in of_series:
        await run_sync(shutil.rmtree, stored.directory)
        await run_sync(partial(store.lock(stored.manifest.requirement).unlink, missing_ok=True))


async def test_a_live_pool_rolls_over_under_load_and_back(
    config: PoolConfig, publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another image comes to bear the name: the pool bakes, tries and changes; no claim fails, nothing runs dry.

    Then it goes back at once, and stays.
    """
    told: list[LifeEvent] = []
    ready: list[int] = []
    generations: list[int] = []
    is_over = anyio.Event()
    async with VMPool(config, observers=[told.append]) as pool:
        await pool.wait_ready()

        async def caller() -> None:
            while not is_over.is_set():
                async with pool.acquire(timeout=60) as vm:
                    assert (await vm.run("print(6 * 7)", timeout=60)).text == "42\n"
                    assert vm.receipt is not None
                    generations.append(vm.receipt.generation or 0)

        async def watch() -> None:
            while not is_over.is_set():
                record = pool.statistics()
                ready.append(record.ready + record.starting + record.leased)
                await pool._keeper.changed.wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(caller())
            group.create_task(watch())
            with anyio.fail_after(120):
                _lease = await pool.claim(60)  # held all the time
                await run_sync(publisher.publish)
                while not (generations and generations[-1] == 2):  # noqa: ASYNC110 - as observed by the caller
                    await anyio.sleep(0.05)
            assert await pool.roll_back() == 1
            with anyio.fail_after(60):
                while generations[-1] != 1:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            is_over.set()
        assert pool.statistics().lost == 0
        kinds = [event.kind for event in told]
        assert kinds.count(EventKind.TEMPLATE_DRIFTED) == kinds.count(EventKind.TEMPLATE_BAKED) == 1
        changes = [event.fields for event in told if event.kind is EventKind.GENERATION_CHANGED]
        assert [(change["generation"], change["why"]) for change in changes] == [(2, "image"), (1, "rolled back")]
        for refused in (EventKind.CLAIM_REFUSED, EventKind.CANARY_FAILED, EventKind.TEMPLATE_BAKE_FAILED):
            assert kinds.count(refused) == 0
        assert min(ready) >= config.min_size
        assert set(generations) == {1, 2}
        for generation in pool.generations():
            assert generation.is_live == (generation.generation == 1)
    with capsys.disabled():
        print(f"roll-over and back under load: {len(generations)} claims, none failed")  # noqa: T201 - a figure


async def test_pins_and_pruning(config: PoolConfig) -> None:
    """A generation that was chosen by hand is used, also by a pool that runs; old ones go, except what is in use."""
    store = TemplateStore(HostConfig().paths.templates)
    first = await Template.ensure(config.template)
    assert await first.drift() is None
    assert await first.drift(max_age=3600) is None
    aged = await first.drift(max_age=1e-6)
    assert aged is not None
    assert aged.reasons == ("age",)

    async with first.successor() as candidate:
        assert candidate.was_baked
        async with candidate.source.lease() as vm:
            assert (await vm.run("print(1)")).ok
    assert len(await run_sync(store.ls, first.manifest.series)) == 1  # it was not adopted

    live = first
    for _ in range(2):
        async with live.successor() as candidate:
            live = await candidate.adopt()
    assert (live.generation, (await live.former()).generation) == (3, 2)
    assert (await Template.ensure(config.template)).generation == 3

    series = live.manifest.series
    stored = await run_sync(store.ls, series)
    await run_sync(store.pin, series, stored[0])
    assert (await Template.ensure(config.template)).generation == 1
    drift = await live.drift()
    assert drift is not None
    assert (drift.reasons, drift.wanted) == (("pin",), first.directory.name)
    async with live.successor() as candidate:
        assert (candidate.was_baked, candidate.source.generation) == (False, 1)
    await run_sync(store.pin, series, None)

    await first.tidy()
    assert len(await run_sync(store.ls, series)) == 3, "the first is in use by this process"
    assert first._hold is not None
    first._hold.release()
    del candidate
    await live.tidy()
    assert [one.manifest.generation for one in await run_sync(store.ls, series)] == [2, 3]


async def test_another_qemu_is_refused(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved state is loaded only by the QEMU that wrote it, also when that was replaced a moment ago."""
    host = template.host
    other = replace(host.platform, qemu_version="10.9.9")
    monkeypatch.setattr(host, "platform", other)
    with pytest.raises(TemplateError, match="this host now has"):
        async with template.lease():
            pass
    drift = await template.drift()  # looks again, and finds what is there
    assert drift is None
    async with template.lease():
        pass
    monkeypatch.setattr(host, "facts", replace(host.facts, emulator_id="another"))
    with pytest.raises(HypervisorError, match="QEMU was replaced"):
        async with template.lease():
            pass


async def test_a_look_is_cheap(template: Template) -> None:
    """When nothing has changed, the look costs less than a hundredth of a restore."""
    await template.drift()
    began = time.perf_counter()
    for _ in range(20):
        assert await template.drift(max_age=1e9) is None
    assert (time.perf_counter() - began) / 20 < 0.015


@pytest.mark.parametrize("field", [name for name in type(REQUIREMENT).model_fields if name != "format"])
def test_drift_names_what_differs(baked: Path, field: str) -> None:  # noqa: F811 - the fixture
    """Each part of the requirement is a reason of its own; a generation that was chosen by hand is left alone."""
    manifest = TemplateManifest.load(baked)
    assert manifest is not None
    value = getattr(REQUIREMENT, field)
    other = REQUIREMENT.model_copy(update={field: value + 1 if isinstance(value, int) else f"{value}x"})
    assert drift_of("a.1", manifest, Sight(REQUIREMENT), None) is None
    drift = drift_of("a.1", manifest, Sight(other), None)
    assert drift is not None
    assert (drift.reasons, drift.wanted) == ((field,), other.key)
    assert drift_of("a.1", manifest, Sight(other, pinned="a.1", age=9.0), 1.0) is None
    damaged = drift_of("a.1", manifest, Sight(other, pinned="a.1", is_intact=False), 1.0)
    assert damaged is not None
    assert damaged.reasons == ("files",)
    parts = drift_of("a.1", manifest, Sight(other, age=2.0, is_other_kernel=True, is_other_agent=True), 1.0)
    assert parts is not None
    assert parts.reasons == (field, "kernel", "agent", "age")


def test_what_is_held_is_not_removed(baked: Path) -> None:  # noqa: F811 - the fixture
    """Any number may hold a template; it goes when the last one lets go, and cannot be held from then on."""
    directory = baked.with_name(f"{REQUIREMENT.key}.1")
    baked.rename(directory)
    store = TemplateStore(directory.parent)
    holds = [Hold.take(directory), Hold.take(directory)]
    for hold in holds:
        assert hold is not None
        assert not store.discard(directory)
        assert (directory / STATE).exists()
        hold.release()
        hold.release()
    assert store.discard(directory)
    assert not directory.exists()
    assert Hold.take(directory) is None
