"""The golden snapshot as a source of VMs: each lease is a fresh clone with an identity of its own."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import tenacity
from anyio.to_thread import run_sync

from sandbox.config import HostConfig, TemplateConfig
from sandbox.errors import ImageError, StartError, TemplateError
from sandbox.hypervisor.host import Hypervisor
from sandbox.hypervisor.spec import MachineSpec
from sandbox.image.build import ensure_image
from sandbox.image.recipe import known_recipes
from sandbox.image.store import Image, ImageStore
from sandbox.log import log
from sandbox.paths import make_directory
from sandbox.template.bake import bake
from sandbox.template.manifest import MEMORY, STATE, Requirement, TemplateManifest
from sandbox.vm import READY_SECONDS, VM, VMSource, open_vm, warm_up

_START_ATTEMPTS = 2
_LOCK_POLL_SECONDS = 0.05


class Template:
    """A verified golden snapshot on this host."""

    def __init__(
        self,
        host: Hypervisor,
        directory: Path,
        spec: MachineSpec,
        manifest: TemplateManifest,
        languages: Sequence[str] = ("python", "bash"),
    ) -> None:
        self.host = host
        self.languages = languages
        self.directory = directory
        self.spec = spec
        self.manifest = manifest
        self.memory_reserve_mib = 0
        """What must stay available on the host for another clone to be started; see `HostConfig`."""

    def __repr__(self) -> str:
        return f"<Template {self.directory.name} {self.spec.memory_mib} MiB {self.host.platform.accelerator}>"

    @classmethod
    async def ensure(cls, config: TemplateConfig | None = None, host_config: HostConfig | None = None) -> Template:
        """Return the template for `config`; build its image and bake it first where they are missing or stale.

        However many processes ask at once, one of them builds. A template whose files or whose environment differ
        from its manifest is never used: it is baked anew.
        """
        config = config or TemplateConfig()
        host_config = host_config or HostConfig()
        image = await run_sync(_image, config.image, ImageStore(host_config.paths.images))
        host = await Hypervisor.connect(host_config)
        template = await cls._ensure(host, image, config, host_config.paths.templates)
        template.memory_reserve_mib = host_config.memory_reserve_mib
        return template

    @classmethod
    async def _ensure(cls, host: Hypervisor, image: Image, config: TemplateConfig, templates: Path) -> Template:
        requirement = Requirement.of(image.digest, config.memory_mib, config.vcpus, host.platform)
        directory = templates / requirement.key
        spec = MachineSpec(
            kernel=image.kernel,
            initrd=image.initrd,
            root=image.root,
            memory_mib=config.memory_mib,
            vcpus=config.vcpus,
            memory_file=directory / MEMORY,
            state=directory / STATE,
        )
        manifest = await run_sync(_load_verified, directory, requirement)
        if manifest is None:
            async with _locked(templates / f"{requirement.key}.lock"):
                manifest = await run_sync(_load_verified, directory, requirement)  # somebody may have been faster
                if manifest is None:
                    what = f"{config.image}, {config.memory_mib} MiB, {host.platform.accelerator}"
                    log.progress(f"baking the template ({what})")
                    await bake(host, spec, requirement, directory)
                    manifest = await run_sync(_load_verified, directory, requirement)
        if manifest is None:
            raise TemplateError(f"the template {directory} vanished while it was made; is another process pruning?")
        return cls(host, directory, spec, manifest, image.manifest.recipe.languages)

    def warmed(self) -> VMSource:
        """Return the same source, but of clones that have already run one throw-away command."""
        return _Warmed(self)

    @asynccontextmanager
    async def lease(self, *, warm: bool = False) -> AsyncIterator[VM]:
        """Give one fresh clone; it has confirmed its own identity, clock and randomness. Destroy it afterwards.

        No user code has run when this fails, so a failed restore is tried once more before `StartError` is raised.
        """
        async with AsyncExitStack() as stack:
            async for attempt in tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(_START_ATTEMPTS),
                retry=tenacity.retry_if_exception_type(StartError),
                before_sleep=lambda state: log.warning("restore_failed", error=str(_error_of(state))),
                reraise=True,
            ):
                with attempt:
                    vm = await stack.enter_async_context(self._restore(warm=warm))
            yield vm

    @asynccontextmanager
    async def _restore(self, *, warm: bool) -> AsyncIterator[VM]:
        started = time.monotonic()
        machine = await self.host.start(self.spec, reserve_mib=self.memory_reserve_mib)
        async with open_vm(machine, ready_seconds=READY_SECONDS, languages=self.languages) as vm:
            restored = time.monotonic()
            if warm:
                await warm_up(vm)
            vm.timings = {"start": restored - started, "warm_up": time.monotonic() - restored}
            yield vm


def _image(name: str, store: ImageStore) -> Image:
    """Return the image of a recipe, built if need be, or the built image whose name or digest is given."""
    if name.endswith(".toml") or name in known_recipes():
        return ensure_image(name, store, log.progress)
    try:
        return store.find(name)
    except ImageError as error:
        known = ", ".join(known_recipes())
        raise ImageError(f"there is no recipe and no built image {name!r}; recipes are {known}") from error


class _Warmed:
    def __init__(self, template: Template) -> None:
        self._template = template

    def lease(self) -> AbstractAsyncContextManager[VM]:
        return self._template.lease(warm=True)


def _error_of(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _load_verified(directory: Path, requirement: Requirement) -> TemplateManifest | None:
    """Return the manifest if the template is there and whole; None, with a warning, when it must be baked anew."""
    try:
        manifest = TemplateManifest.load(directory)
        if manifest is not None:
            manifest.verify(directory, requirement)
    except TemplateError as error:
        log.warning("template_refused", reason=str(error), remedy="it is baked anew")
        return None
    return manifest


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold an exclusive lock among processes. Polls, because a thread that blocks in flock cannot be cancelled."""
    make_directory(path.parent)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await anyio.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
