"""The golden snapshot as a source of VMs: each lease is a fresh clone with an identity of its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import tenacity
from anyio.to_thread import run_sync

from sandbox import arguments
from sandbox.config import HostConfig, TemplateConfig
from sandbox.errors import StartError, StateError, StateNotLoaded, TemplateError
from sandbox.handle import Handle
from sandbox.hypervisor.host import Hypervisor
from sandbox.hypervisor.spec import MachineSpec
from sandbox.hypervisor.threads import telling_shortage
from sandbox.log import log
from sandbox.template.digest import Identity, identity
from sandbox.template.drift import Drift
from sandbox.template.hold import Hold
from sandbox.template.manifest import MEMORY, STATE, TemplateManifest
from sandbox.template.series import Candidate, Series
from sandbox.template.store import Stored
from sandbox.template.unloadable import Condition, note_unloadable
from sandbox.trace.stage import recorder, stage
from sandbox.vm import READY_SECONDS, VM, open_vm, warm_up

_START_ATTEMPTS = 2


class Template(Handle):
    """A verified golden snapshot on this host: one generation of a series."""

    def __init__(
        self,
        host: Hypervisor,
        directory: Path,
        spec: MachineSpec,
        manifest: TemplateManifest,
        languages: Sequence[str] = ("python", "bash"),
        *,
        series: Series | None = None,
        hold: Hold | None = None,
        image_parts: tuple[str, str] = ("", ""),
    ) -> None:
        self.host = host
        self.languages = languages
        self.directory = directory
        self.spec = spec
        self.manifest = manifest
        self.memory_reserve_mib = 0
        """What must stay available on the host for another clone to be started; see `HostConfig`."""
        self.baked_at = manifest.baked_at
        """When it was baked, by the monotonic clock."""
        self.image_parts = image_parts
        """The version of its kernel and the digest of its agent."""
        self._series = series
        self._hold = hold
        self._is_warm = False
        self._is_kept = False
        self.condition = Condition()
        self._heir: list[Template] = []
        """What is leased instead, once QEMU could not load this one. Copies share it."""
        self._files = [] if series is None else self._look()

    def __repr__(self) -> str:
        return (
            f"<Template {self.manifest.series} generation {self.generation} "
            f"{self.spec.memory_mib} MiB {self.host.platform.accelerator}>"
        )

    @classmethod
    async def ensure(cls, config: TemplateConfig | None = None, host_config: HostConfig | None = None) -> Template:
        """Return the template for `config`; build its image and bake it first where they are missing or stale.

        However many processes ask at once, one of them builds. A template whose files or whose environment differ
        from its manifest is never used: it is baked anew.
        """
        wanted = TemplateConfig() if config is None else arguments.one_of("config", config, TemplateConfig)
        host = HostConfig() if host_config is None else arguments.one_of("host_config", host_config, HostConfig)
        with telling_shortage(), stage("open libvirt, find the image"):
            series = await Series.of(wanted, host, cls)
        with telling_shortage(), stage("verify the template"):
            return await series.ensure()

    @property
    def generation(self) -> int:
        """Its number in its series."""
        return self.manifest.generation

    def warmed(self) -> Template:
        """Return the same source, but of clones that have already run one throw-away command."""
        warm = self._twin()
        warm._is_warm = True
        return warm

    def _twin(self) -> Template:
        twin = object.__new__(Template)
        twin.__dict__.update(self.__dict__)
        return twin

    def kept(self) -> Template:
        """Return the same source for an owner that has `successor` replace it: its leases fail, and bake nothing."""
        kept = self._twin()
        kept._is_kept = True
        return kept

    def at(self, directory: Path) -> Template:
        """Return the same template, held and used in another directory. Blocks."""
        moved = self._twin()
        moved.directory = directory
        moved.spec = replace(self.spec, memory_file=directory / MEMORY, state=directory / STATE)
        moved._hold = Hold.take(directory)
        moved._files = moved._look()
        return moved

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[VM]:
        """Give one fresh clone; it has confirmed its own identity, clock and randomness. Destroy it afterwards.

        No user code has run when this fails, so a failed restore is tried once more before `StartError` is raised. A
        template whose state QEMU cannot load is baked anew, once; `TemplateError` with QEMU's words is raised when that
        one cannot be loaded either.
        """
        async with AsyncExitStack() as stack:
            yield await self._enter_what_can_be_loaded(stack)

    async def _enter_what_can_be_loaded(self, stack: AsyncExitStack) -> VM:
        if self._is_kept or self._series is None:
            return await self._enter(stack)
        if not self._heir:
            try:
                return await self._enter(stack)
            except StateNotLoaded as error:
                await self._find_heir(self._series, str(error))
        heir = self._heir[0]._twin()
        heir._is_warm = self._is_warm
        try:
            return await heir._enter(stack)
        except StateNotLoaded as error:
            raise TemplateError(f"{heir!r} was baked anew, and QEMU cannot load its state either: {error}") from error

    async def _find_heir(self, series: Series, said: str) -> None:
        async with self.condition.lock:
            if not self._heir:
                self._heir.append(await series.instead_of(self, said))

    async def _enter(self, stack: AsyncExitStack) -> VM:
        try:
            async for attempt in tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(_START_ATTEMPTS),
                retry=tenacity.retry_if_exception_type(StartError),
                before_sleep=lambda state: log.warning("restore_failed", error=str(_error_of(state))),
                reraise=True,
            ):
                with attempt:
                    vm = await stack.enter_async_context(self._restore())
        except StateNotLoaded as error:
            self.condition.complaint = str(error)
            note_unloadable(Stored(self.directory, self.manifest), str(error))
            raise
        return vm

    async def drift(self, max_age: float | None = None) -> Drift | None:
        """Return why another template should be used by now, or None: host, image, age in seconds, changed files.

        Costs a few calls of `stat` in a worker thread as long as nothing has changed.
        """
        return None if self._series is None else await run_sync(self._series.drift, self, max_age)

    @asynccontextmanager
    async def successor(self, beyond: int = 0) -> AsyncIterator[Candidate]:
        """Give the template that should follow, to be tried and then adopted; bake it if none above `beyond` is there.

        Raises `StartError` when there is none to be had. Without adoption nothing of it is left.
        """
        if self._series is None:
            raise StateError(f"{self!r} has no series, so nothing follows it")
        async with self._series.successor(self, max(beyond, self.generation)) as candidate:
            candidate.source._is_warm, candidate.source._is_kept = self._is_warm, self._is_kept
            yield candidate

    def is_wanted(self, wanted: str) -> bool:
        """Return whether it is what a `Drift` says should be used."""
        return wanted in (self.directory.name, self.manifest.requirement.key)

    async def former(self) -> Template:
        """Return the generation before this one. Raises `TemplateError` when none is left that this host can use."""
        if self._series is None:
            raise StateError(f"{self!r} has no series, so nothing came before it")
        template = await run_sync(self._series.former, self)
        template._is_warm, template._is_kept = self._is_warm, self._is_kept
        return template

    async def tidy(self) -> None:
        """Remove generations that are neither the newest two of their series nor in use."""
        if self._series is not None:
            for name in await run_sync(self._series.tidy):
                log.info("template_removed", template=name)

    def is_intact(self) -> bool:
        """Return whether its files are those that were verified, as far as `stat` tells. Blocks."""
        return self._files == self._look()

    def _look(self) -> list[Identity]:
        with suppress(OSError):
            return [identity(self.directory / name) for name in (MEMORY, STATE)]
        return []

    @asynccontextmanager
    async def _restore(self) -> AsyncIterator[VM]:
        baked_by, running = self.manifest.requirement.qemu_version, self.host.platform.qemu_version
        if baked_by != running:
            raise TemplateError(f"{self!r} was baked by QEMU {baked_by}, this host now has {running}")
        started = time.monotonic()
        machine = await self.host.start(self.spec, reserve_mib=self.memory_reserve_mib)
        async with open_vm(machine, ready_seconds=READY_SECONDS, languages=self.languages) as vm:
            restored = time.monotonic()
            if (trace := recorder.get()) is not None:
                trace.add("restore", started, restored)
            vm.is_lent = True
            vm.tell_template(self.manifest.series, self.generation, self.baked_at)
            if self._is_warm:
                await warm_up(vm)
            vm.timings = {"start": restored - started, "warm_up": time.monotonic() - restored}
            yield vm


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
