"""What `sandbox doctor` finds about the confinement of QEMU: it starts a VM and looks at the living process."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sandbox.cli.check import Check
from sandbox.cli.run import complete
from sandbox.config import HostConfig, TemplateConfig

if TYPE_CHECKING:  # a host that lacks libvirt shall hear so from the doctor, not from an import
    from sandbox.hypervisor.cgroup_place import Places
    from sandbox.hypervisor.confinement import Confinement
    from sandbox.hypervisor.host import Hypervisor

_DELEGATE = "systemd-run --scope -p Delegate=yes sandbox …, or set SANDBOX_CGROUP=/sandbox as root"

_PRIORITY = "give this process CAP_SYS_NICE (docker run --cap-add SYS_NICE …), or accept it with SANDBOX_NICE=0"


def confinement(config: HostConfig) -> Iterator[Check]:
    """Which user, filter, privileges, devices and control groups a QEMU of ours has right now."""
    from sandbox.hypervisor.confinement import unexpected
    from sandbox.hypervisor.host import Hypervisor

    host = Hypervisor.connect_blocking(config)
    if not _has_template(config, host):
        yield Check("confinement", "warn", "not looked at: that needs a template, to start a VM from", "sandbox setup")
        return
    seen, devices = complete(_look(config))
    faults = seen.faults()
    found = (
        f"QEMU runs as {_user(seen.uid)}, {'with' if seen.has_seccomp_filter else 'without'} a seccomp filter "
        f"(denies {', '.join(seen.denials) or 'nothing more'}), {'with' if seen.capabilities else 'no'} capabilities, "
        f"core dumps {'off' if seen.core_bytes == 0 else 'on'}, at most {seen.open_files or 'any number of'} open files"
    )
    if host.facts.user is None:
        found += "; that user is you: what takes QEMU over has your rights, less what the filter denies"
    if seen.writable_files is None:
        found += (
            "; which files it may write, and whether its memory may be merged with others', could not be looked at: "
            "for that, this process needs CAP_SYS_PTRACE"
        )
    yield Check(
        "confinement", "warn" if faults else "ok", "; ".join([found, *faults]), "sandbox setup" if faults else ""
    )
    odd = unexpected(devices)
    said = f"{len(devices)} devices, none of them a network device"
    said = f"QEMU has devices that it should not: {', '.join(odd)}" if odd else said
    yield Check("devices", "warn" if odd else "ok", said, "report it: docs/confinement.md has the list" if odd else "")
    yield _groups(config, host.groups.places)
    yield _priority(config, seen)


def _priority(config: HostConfig, seen: Confinement) -> Check:
    from sandbox.hypervisor.confinement import Confinement

    if not config.uri.startswith("qemu:///embed"):
        return Check("priority", "ok", f"left to the daemon at {config.uri}")
    if config.nice == 0:
        return Check("priority", "ok", "VMs are this process's equals, as SANDBOX_NICE=0 asks")
    said = f"nice {seen.nice}" + ("" if seen.session_nice is None else f", that of its session {seen.session_nice}")
    if seen.yields_to(Confinement.of(os.getpid())):
        return Check("priority", "ok", f"QEMU yields to this process: {said}")
    return Check("priority", "warn", f"busy VMs take the processor from this process: {said}", _PRIORITY)


def _groups(config: HostConfig, places: Places) -> Check:
    if not config.uri.startswith("qemu:///embed"):
        return Check("cgroups", "ok", f"left to the daemon at {config.uri}")
    limited = [f"{name} (version {places.versions[name]}, {path})" for name, path in places.parents.items()]
    refused = [f"no limit for {name}: {why}" for name, why in places.refused.items()]
    said = "; ".join([f"each VM is limited in {', '.join(limited)}" if limited else "no limits", *refused])
    return Check("cgroups", "warn" if refused else "ok", said, _DELEGATE if refused else "")


async def _look(config: HostConfig) -> tuple[Confinement, list[str]]:
    from sandbox.hypervisor.confinement import Confinement
    from sandbox.template.template import Template

    template = await Template.ensure(TemplateConfig(), config)
    async with template.lease() as vm:
        return Confinement.of(vm.pid), await template.host.call(template.host.connection.devices, vm.name)


def _has_template(config: HostConfig, host: Hypervisor) -> bool:
    """Return whether a VM can be started at once: nothing is built or baked for a look."""
    from sandbox.errors import ImageError
    from sandbox.image.build import is_current
    from sandbox.image.choice import newest_image
    from sandbox.image.store import ImageStore
    from sandbox.template.manifest import Requirement
    from sandbox.template.store import TemplateStore

    store, size = ImageStore(config.paths.images), TemplateConfig()
    try:
        if not is_current(size.image, store):
            return False
        requirement = Requirement.of(newest_image(size.image, store).digest, size.memory_mib, size.vcpus, host.platform)
    except ImageError:
        return False
    return bool(TemplateStore(config.paths.templates).candidates(requirement))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
