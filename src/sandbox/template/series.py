"""Successive templates of one configuration: which is wanted now, which is there, and how the next one is made."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync

from sandbox.config import HostConfig, TemplateConfig
from sandbox.errors import ImageError, TemplateError
from sandbox.hypervisor.host import Hypervisor
from sandbox.hypervisor.spec import MachineSpec
from sandbox.image.choice import Choice
from sandbox.image.store import Image, ImageStore
from sandbox.image.wanted import while_wanted
from sandbox.log import log
from sandbox.template.bake import bake, publish, unpublished
from sandbox.template.drift import Drift, Sight, drift_of
from sandbox.template.hold import Hold, baking
from sandbox.template.manifest import MEMORY, STATE, Requirement, TemplateManifest
from sandbox.template.store import Stored, TemplateStore, hold_verified
from sandbox.template.unloadable import check_hope, is_unloadable

if TYPE_CHECKING:
    from sandbox.template.template import Template

Make = Callable[..., "Template"]


class Candidate:
    """The next generation, to be tried. It is thrown away at the end of its context unless it was adopted by then."""

    def __init__(self, source: Template, target: Path) -> None:
        self.source = source
        self.was_baked = source.directory != target
        """Whether it was made for this; otherwise another process has made and tried it."""
        self._target = target

    async def adopt(self) -> Template:
        """Publish it and return it as a template that can be used for good."""
        if not self.was_baked:
            return self.source
        await run_sync(publish, self.source.directory, self._target)
        return await run_sync(self.source.at, self._target)


class Series:
    """The templates that one configuration has had, has, and will have on this host."""

    def __init__(
        self,
        host: Hypervisor,
        choice: Choice,
        image: Image,
        config: TemplateConfig,
        host_config: HostConfig,
        make: Make,
    ) -> None:
        self._host = host
        self._choice = choice
        self._image = image
        self._config = config
        self._reserve_mib = host_config.memory_reserve_mib
        self._images = ImageStore(host_config.paths.images)
        self._store = TemplateStore(host_config.paths.templates)
        self._make = make

    def __repr__(self) -> str:
        return f"<Series {self.name}>"

    @property
    def name(self) -> str:
        """Names the image, the size, and the recipe by its content: recipes of one name have series of their own."""
        image, config = self._image, self._config
        return f"{image.name}-{config.memory_mib}m-{config.vcpus}c@{image.manifest.recipe.key}"

    @classmethod
    async def of(cls, config: TemplateConfig, host_config: HostConfig, make: Make) -> Series:
        """Return the series of a configuration; build its image first where it is missing or stale."""
        choice = Choice(config.image, ImageStore(host_config.paths.images))
        image = await while_wanted(choice.find, log.progress)
        host = await Hypervisor.connect(host_config)
        return cls(host, choice, image, config, host_config, make)

    async def ensure(self) -> Template:
        """Return the template to use: the pinned one, else the newest for this host and image, baked if need be."""
        if (template := await run_sync(self._existing)) is not None:
            return template
        requirement = self._requirement(self._image)
        async with baking(self._store.lock(requirement)):
            if (template := await run_sync(self._existing)) is not None:  # somebody may have been faster
                return template
            accelerator = self._host.platform.accelerator
            log.progress(f"baking the template ({self._config.image}, {self._config.memory_mib} MiB, {accelerator})")
            return await self._bake(requirement)

    async def instead_of(self, template: Template, said: str) -> Template:
        """Return a newer template for the same, baked if need be: QEMU could not load the state of this one.

        Raises `TemplateError` with QEMU's words, `said`, when one that was baked anew could not be loaded either.
        """
        requirement = self._requirement(self._image)
        async with baking(self._store.lock(requirement)):
            newest = partial(self._newest, self._image, requirement, template.generation)
            if (found := await run_sync(newest)) is not None:  # another process was faster
                return found
            log.warning(
                "template_not_loadable", template=template.directory.name, reason=said, remedy="it is baked anew"
            )
            return await self._bake(requirement)

    async def _bake(self, requirement: Requirement) -> Template:
        """Bake and publish the next generation, and return it. The caller holds the lock of those who bake."""
        check_hope(requirement)
        generation = await run_sync(self._store.next_generation, self.name)
        target = self._store.place(requirement, generation)
        spec = self._spec(self._image, target)
        await bake(self._host, spec, requirement, target, series=self.name, generation=generation)
        template = await run_sync(self._newest, self._image, requirement, generation - 1)
        await run_sync(self._store.prune)
        if template is None:
            raise TemplateError(f"the template {target} vanished while it was made; is another process pruning?")
        return template

    def drift(self, template: Template, max_age: float | None) -> Drift | None:
        """Return why `template` is not what should be used now, or None. Blocks, for some calls of `stat` at best."""
        image, requirement = self._wanted()
        pinned = self._pinned()
        sight = Sight(
            wanted=requirement,
            pinned=None if pinned is None or not self._fits(pinned) else pinned.name,
            is_loadable=not template.condition.complaint,
            age=time.monotonic() - template.baked_at,
            is_intact=template.is_intact(),
            is_other_kernel=image.manifest.kernel != template.image_parts[0],
            is_other_agent=image.manifest.agent != template.image_parts[1],
        )
        return drift_of(template.directory.name, template.manifest, sight, max_age)

    @asynccontextmanager
    async def successor(self, template: Template, beyond: int) -> AsyncIterator[Candidate]:
        """Give the generation that should follow `template`: pinned, found with a number above `beyond`, or baked.

        Raises `TemplateError` and other `StartError`s when it cannot be made; nothing of it is left then.
        """
        image, requirement = await run_sync(self._wanted)
        async with baking(self._store.lock(requirement)):
            if (found := await run_sync(self._following, template, requirement, beyond)) is not None:
                yield Candidate(found, found.directory)
                return
            generation = max(beyond, await run_sync(self._store.next_generation, self.name) - 1) + 1
            target = self._store.place(requirement, generation)
            spec = self._spec(image, target)
            made = unpublished(self._host, spec, requirement, target, series=self.name, generation=generation)
            async with made as work:
                manifest = await run_sync(TemplateManifest.load, work)
                assert manifest is not None
                source = await run_sync(self._open, Stored(work, manifest), image, None)
                yield Candidate(source, target)

    def former(self, template: Template) -> Template:
        """Return the generation before `template`. Raises `TemplateError` when none can be used. Blocks."""
        stored = self._store.former(self.name, template.generation)
        if stored is None:
            raise TemplateError(f"there is no generation of {self.name} before {template.generation}")
        return self._use(stored)

    def tidy(self) -> list[str]:
        """Remove old generations that no process uses; return their names. Blocks."""
        return self._store.prune()

    def _existing(self) -> Template | None:
        pinned = self._pinned()
        if pinned is not None:
            try:
                return self._use(pinned)
            except (TemplateError, ImageError) as error:
                log.warning("template_pin_ignored", series=self.name, template=pinned.name, reason=str(error))
        return self._newest(self._image, self._requirement(self._image), beyond=0)

    def _pinned(self) -> Stored | None:
        """Return the generation that was chosen by hand, if it is there and QEMU can load it."""
        pinned = self._store.pinned(self.name)
        return None if pinned is None or is_unloadable(pinned) else pinned

    def _newest(self, image: Image, requirement: Requirement, beyond: int) -> Template | None:
        for stored in self._store.candidates(requirement):
            if stored.manifest.generation <= beyond or is_unloadable(stored):
                continue
            if (hold := hold_verified(stored, requirement)) is not None:
                return self._open(stored, image, hold)
        return None

    def _following(self, template: Template, requirement: Requirement, beyond: int) -> Template | None:
        pinned = self._pinned()
        if pinned is not None and pinned.name != template.directory.name and self._fits(pinned):
            return self._use(pinned)
        return self._newest(self._image, requirement, beyond)

    def _use(self, stored: Stored) -> Template:
        """Open a certain generation; raise when this host or the store of images does not allow it any more."""
        requirement = Requirement.of(
            stored.manifest.requirement.image, self._config.memory_mib, self._config.vcpus, self._host.platform
        )
        image = self._images.find(requirement.image)
        stored.manifest.verify(stored.directory, requirement)
        hold = Hold.take(stored.directory)
        if hold is None:
            raise TemplateError(f"the template {stored.name} is being removed")
        return self._open(stored, image, hold)

    def _fits(self, stored: Stored) -> bool:
        image = stored.manifest.requirement.image
        wanted = Requirement.of(image, self._config.memory_mib, self._config.vcpus, self._host.platform)
        return stored.manifest.requirement == wanted

    def _open(self, stored: Stored, image: Image, hold: Hold | None) -> Template:
        template = self._make(
            self._host,
            stored.directory,
            self._spec(image, stored.directory),
            stored.manifest,
            image.manifest.recipe.languages,
            series=self,
            hold=hold,
            image_parts=(image.manifest.kernel, image.manifest.agent),
        )
        template.memory_reserve_mib = self._reserve_mib
        return template

    def _wanted(self) -> tuple[Image, Requirement]:
        """Return what a template should be made of now: of this host, and of the image that is meant by now."""
        self._host.renew()
        self._image = self._choice.look(self._image)
        return self._image, self._requirement(self._image)

    def _requirement(self, image: Image) -> Requirement:
        return Requirement.of(image.digest, self._config.memory_mib, self._config.vcpus, self._host.platform)

    def _spec(self, image: Image, directory: Path) -> MachineSpec:
        return MachineSpec(
            kernel=image.kernel,
            initrd=image.initrd,
            root=image.root,
            memory_mib=self._config.memory_mib,
            vcpus=self._config.vcpus,
            memory_file=directory / MEMORY,
            state=directory / STATE,
        )
