"""What `sandbox doctor` finds about the hypervisor, the default image and its template."""

from __future__ import annotations

from collections.abc import Iterator

from sandbox.cli.check import Check
from sandbox.config import HostConfig, TemplateConfig
from sandbox.errors import TemplateError


def hypervisor(config: HostConfig) -> Iterator[Check]:
    """Versions, accelerator, and what dead processes have left."""
    from sandbox.hypervisor.host import Hypervisor
    from sandbox.hypervisor.rundir import stale

    left = stale(config.runtime_dir)
    host = Hypervisor.connect_blocking(config)
    yield Check("qemu", "ok", f"{host.facts.qemu_version}, machine {host.facts.machine_type}")
    yield Check("libvirt", "ok", f"{host.connection.version} at {config.uri}")
    if not config.uri.startswith("qemu:///embed"):
        found = "VMs ask the daemon for no security label: its AppArmor or SELinux profiles do not confine their QEMU"
        yield Check("labels", "warn", found, "use the default connection as a user who owns nothing else")
    if host.platform.accelerator == "kvm":
        yield Check("accelerator", "ok", f"KVM: {host.facts.kvm_verdict}")
    else:
        remedy = "use a host with hardware virtualization, and give QEMU's user access to /dev/kvm"
        verdict = (
            f"TCG, software emulation: slow, and by QEMU's policy not a security boundary ({host.facts.kvm_verdict})"
        )
        yield Check("accelerator", "warn", verdict, remedy)
    found = f"{left} run directories of dead processes were found and cleared" if left else "none"
    yield Check("leftovers", "warn" if left else "ok", found)


def image(config: HostConfig) -> Iterator[Check]:
    """Whether the default image and its template are there, current and whole."""
    from sandbox.hypervisor.host import Hypervisor
    from sandbox.image.build import is_current
    from sandbox.image.choice import newest_image
    from sandbox.image.store import ImageStore
    from sandbox.template.manifest import Requirement
    from sandbox.template.store import TemplateStore

    store = ImageStore(config.paths.images)
    if not is_current("default", store):
        yield Check("image", "warn", "the default image is missing or stale; the next run builds it", "sandbox setup")
        return
    found = newest_image("default", store)
    yield Check("image", "ok", f"default {found.digest[:12]}, Debian {found.manifest.suite}, {found.manifest.kernel}")
    size = TemplateConfig()
    platform = Hypervisor.connect_blocking(config).platform
    requirement = Requirement.of(found.digest, size.memory_mib, size.vcpus, platform)
    stored = TemplateStore(config.paths.templates).candidates(requirement)
    if not stored:
        yield Check("template", "warn", "not baked for this image and QEMU; the next run does it", "sandbox setup")
        return
    newest = stored[0]
    try:
        newest.manifest.verify(newest.directory, requirement)
    except TemplateError as error:
        yield Check("template", "warn", f"{error}; the next run bakes it anew", "sandbox setup")
        return
    said = f"{newest.name[:12]}, {size.memory_mib} MiB, baked {newest.manifest.created}, digests match"
    yield Check("template", "ok", said)
