"""Templates that digests call whole and QEMU cannot load, guests that die while one is made, and what it all costs."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import run_sync

from sandbox.config import HostConfig, PoolConfig, TemplateConfig
from sandbox.errors import StartError, TemplateError
from sandbox.event import EventKind, LifeEvent
from sandbox.pool.pool import VMPool
from sandbox.template import bake, digest, unloadable
from sandbox.template.manifest import MEMORY, STATE
from sandbox.template.store import TemplateStore
from sandbox.template.template import Template
from sandbox.vm import VM

WORDS = "load of migration failed|rror while loading"


@pytest.fixture
async def config(template: Template, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TemplateConfig]:
    """A size that no other test uses; its templates are removed afterwards."""
    monkeypatch.setattr(unloadable, "_found", {})
    config = TemplateConfig(image=template.manifest.requirement.image, memory_mib=168)
    yield config
    store = TemplateStore(HostConfig().paths.templates)
    for stored in await run_sync(store.ls):
        if stored.manifest.requirement.memory_mib == config.memory_mib:
            await run_sync(shutil.rmtree, stored.directory)
            with suppress(FileNotFoundError):
                store.lock(stored.manifest.requirement).unlink()


@pytest.fixture
def bakes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each bake to come, whether QEMU can load its state; what is baked beyond them is sound."""
    planned: list[bool] = []
    seal = bake._seal

    def spoil(work: Path) -> None:
        if not (planned.pop(0) if planned else True):
            os.truncate(work / STATE, (work / STATE).stat().st_size // 2)
        seal(work)

    monkeypatch.setattr(bake, "_seal", spoil)
    return planned


async def _says(vm: VM) -> str:
    return (await vm.run("print(6 * 7)", timeout=60)).text


async def test_a_state_that_cannot_be_loaded_is_baked_anew(
    config: TemplateConfig, bakes: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets a VM, the log gets QEMU's words; later leases and processes use the new one at once."""
    bakes.append(False)
    broken = await Template.ensure(config)
    async with broken.lease() as vm:
        assert await _says(vm) == "42\n"
        assert vm.receipt is not None
        assert vm.receipt.generation == 2
    (told,) = [record.getMessage() for record in caplog.records if "template_not_loadable" in record.getMessage()]
    assert any(words in told for words in WORDS.split("|")), told
    caplog.clear()
    for source in (broken, broken.warmed(), await Template.ensure(config)):
        async with source.lease() as vm:
            assert await _says(vm) == "42\n"
    assert not caplog.records
    assert (await Template.ensure(config)).generation == 2


async def test_a_second_state_that_cannot_be_loaded_is_told(config: TemplateConfig, bakes: list[bool]) -> None:
    """One bake, not one for each attempt; the error has QEMU's words."""
    bakes += [False, False]
    broken = await Template.ensure(config)
    for _ in range(2):
        with pytest.raises(TemplateError, match=WORDS):
            async with broken.lease():
                pass
    assert bakes == []
    with pytest.raises(TemplateError, match=WORDS):
        await Template.ensure(config)


async def test_a_pool_replaces_what_it_cannot_load(config: TemplateConfig, bakes: list[bool]) -> None:
    """The next generation is baked once, without a look that is due, and tried; callers are served from it."""
    told: list[LifeEvent] = []
    bakes.append(False)
    source = await Template.ensure(config)
    pool = VMPool(
        PoolConfig(min_size=1, max_size=3, template_check_interval=None), source=source, observers=[told.append]
    )
    async with pool:
        while not (lease := await _claimed(pool)):
            pass
        assert await _says(lease.vm) == "42\n"
        assert [generation.generation for generation in pool.generations() if generation.is_live] == [2]
        with pytest.raises(TemplateError, match="state changed since"):
            await pool.roll_back()
    kinds = Counter(event.kind for event in told)
    assert (kinds[EventKind.TEMPLATE_BAKED], kinds[EventKind.CANARY_FAILED]) == (1, 0)
    (change,) = [event.fields for event in told if event.kind is EventKind.GENERATION_CHANGED]
    assert (change["generation"], change["why"]) == (2, "state")
    assert "STATE_NOT_LOADED" in {event.fields.get("code") for event in told}


async def _claimed(pool: VMPool) -> Any:
    try:
        return await pool.claim(60)
    except StartError:  # told while there is no other template yet
        await pool._keeper.changed.wait()
        return None


def _dying(phase: str, monkeypatch: pytest.MonkeyPatch, deaths: list[bool]) -> None:
    """Have the QEMU that is baked killed in a phase, each time that is planned."""
    act: Callable[[VM], Any] = getattr(bake, phase)

    async def die(vm: VM) -> Any:
        if deaths and deaths.pop(0):
            os.kill(vm.pid, signal.SIGKILL)
        return await act(vm)

    monkeypatch.setattr(bake, phase, die)


async def test_a_guest_that_dies_while_a_template_is_made(
    config: TemplateConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another one is booted, once; then it is an error of ours, which tells what became of it. Nothing is left."""
    store = TemplateStore(HostConfig().paths.templates)
    with monkeypatch.context() as patched:
        _dying("check_clock", patched, [True])
        _dying("lint", patched, [True])
        with pytest.raises(TemplateError, match=r"golden guest was lost.*killed by signal 9"):
            await Template.ensure(config)
    assert caplog.text.count("bake_failed") == 1
    assert not list(store.directory.glob(".bake-*"))
    with monkeypatch.context() as patched:
        _dying("_warm", patched, [True])
        assert (await Template.ensure(config)).generation == 1


async def test_a_guest_whose_clock_is_wrong(
    config: TemplateConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A busy host makes a kernel mistake its processor's rate: another one is booted, once; then it is an error."""
    answer = bake._answer
    wrong = [True, True, False, True, False]

    async def answer_wrongly(vm: VM, script: str) -> str:
        said = await answer(vm, script)
        return str(float(said) + 17.7) if "time.time()" in script and wrong.pop(0) else said

    monkeypatch.setattr(bake, "_answer", answer_wrongly)
    with pytest.raises(TemplateError, match=r"clock went wrong by \+17\.\d s.*when the host is less busy"):
        await Template.ensure(config)
    assert caplog.text.count("bake_failed") == 1
    wrong.insert(0, True)
    del wrong[2:]
    assert (await Template.ensure(config)).generation == 1
    assert wrong == []


async def test_a_template_is_read_once(config: TemplateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bake hashes each file once, and this process hashes none again until one has changed."""
    hashed: list[str] = []
    whole = digest.digest_sparse

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return whole(path)

    monkeypatch.setattr(digest, "digest_sparse", counting)
    template = await Template.ensure(config)
    assert sorted(hashed) == [MEMORY, STATE]
    for _ in range(3):
        await Template.ensure(config)
    assert len(hashed) == 2
    (template.directory / STATE).touch()
    await Template.ensure(config)
    assert hashed[2:] == [STATE]
