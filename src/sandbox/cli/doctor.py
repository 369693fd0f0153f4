"""`sandbox doctor`: what works, what does not, and the line that mends it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sandbox.config import HostConfig, TemplateConfig
from sandbox.errors import SandboxError, TemplateError
from sandbox.setup import packages

_DISK_BYTES = 2_000_000_000
_MEMORY_MIB = 512


@dataclass(frozen=True)
class Check:
    """One finding. `fail` means that no VM can run; `warn` that something is worse than it could be."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def run_doctor(*, as_json: bool, clones: bool = False) -> int:
    """Print every finding; exit with 1 if something is broken. With `clones`, two VMs are started and compared."""
    config = HostConfig()
    examinations = list(_EXAMINATIONS)
    if clones:
        from sandbox.cli.clones import examine_clones

        examinations.append(examine_clones)
    checks = [check for examine in examinations for check in _guarded(examine, config)]
    if as_json:
        print(json.dumps({"ok": not _failed(checks), "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        for check in checks:
            print(f"{check.status:<5}{check.name:<14}{check.found}")
            if check.remedy:
                print(f"{'':<19}→ {check.remedy}")
    return 1 if _failed(checks) else 0


def _failed(checks: list[Check]) -> bool:
    return any(check.status == "fail" for check in checks)


def _guarded(examine: Callable[[HostConfig], Iterator[Check]], config: HostConfig) -> Iterator[Check]:
    """A check that finds its subject broken says so and does not keep the others from being made."""
    try:
        yield from examine(config)
    except (SandboxError, OSError, ImportError) as error:
        yield Check(examine.__name__.lstrip("_"), "fail", str(error), "sandbox setup")


def _packages(_config: HostConfig) -> Iterator[Check]:
    lacking = packages.missing()
    if lacking:
        yield Check("packages", "fail", f"missing or too old: {' '.join(lacking)}", "sandbox setup")
    else:
        yield Check("packages", "ok", "all system packages are there")


def _directories(config: HostConfig) -> Iterator[Check]:
    for name, path in (("data", config.data_dir), ("runtime", config.runtime_dir)):
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not os.access(existing, os.W_OK):
            variable = f"SANDBOX_{name.upper()}_DIR"
            yield Check(name, "fail", f"{path} cannot be written", f"export {variable}=/a/directory/of/yours")
        else:
            free = shutil.disk_usage(existing).free
            scarce = name == "data" and free < _DISK_BYTES
            remedy = "sandbox image prune" if scarce else ""
            yield Check(name, "warn" if scarce else "ok", f"{path}, {free / 1e9:.1f} GB free", remedy)


def _hypervisor(config: HostConfig) -> Iterator[Check]:
    from sandbox.hypervisor.host import Hypervisor
    from sandbox.hypervisor.rundir import stale

    left = stale(config.runtime_dir)
    host = Hypervisor.connect_blocking(config)
    yield Check("qemu", "ok", f"{host.facts.qemu_version}, machine {host.facts.machine_type}")
    yield Check("libvirt", "ok", f"{host.connection.version()} at {config.uri}")
    if host.platform.accelerator == "kvm":
        yield Check("accelerator", "ok", f"KVM: {host.facts.kvm_verdict}")
    else:
        remedy = "use a host with hardware virtualization, and give QEMU's user access to /dev/kvm"
        verdict = (
            f"TCG, software emulation: slow, and by QEMU's policy not a security boundary ({host.facts.kvm_verdict})"
        )
        yield Check("accelerator", "warn", verdict, remedy)
    user = host.facts.user or f"uid {os.geteuid()}, your own"
    yield Check("confinement", "ok", f"QEMU runs as {user}, with its seccomp filter on and without a network device")
    found = f"{left} run directories of dead processes were found and cleared" if left else "none"
    yield Check("leftovers", "warn" if left else "ok", found)


def _image(config: HostConfig) -> Iterator[Check]:
    from sandbox.hypervisor.host import Hypervisor
    from sandbox.image.build import is_current
    from sandbox.image.store import ImageStore
    from sandbox.template.manifest import Requirement, TemplateManifest

    store = ImageStore(config.paths.images)
    if not is_current("default", store):
        yield Check("image", "warn", "the default image is missing or stale; the next run builds it", "sandbox setup")
        return
    image = store.find("default")
    yield Check("image", "ok", f"default {image.digest[:12]}, Debian {image.manifest.suite}, {image.manifest.kernel}")
    size = TemplateConfig()
    platform = Hypervisor.connect_blocking(config).platform
    requirement = Requirement.of(image.digest, size.memory_mib, size.vcpus, platform)
    directory = config.paths.templates / requirement.key
    try:
        manifest = TemplateManifest.load(directory)
        if manifest is not None:
            manifest.verify(directory, requirement)
    except TemplateError as error:
        yield Check("template", "warn", f"{error}; the next run bakes it anew", "sandbox setup")
        return
    if manifest is None:
        yield Check("template", "warn", "not baked for this image and QEMU; the next run does it", "sandbox setup")
        return
    yield Check(
        "template", "ok", f"{requirement.key[:12]}, {size.memory_mib} MiB, baked {manifest.created}, digests match"
    )


def _memory(_config: HostConfig) -> Iterator[Check]:
    from sandbox.hypervisor.resources import available_mib

    free = available_mib()
    status: Literal["ok", "warn"] = "ok" if free >= _MEMORY_MIB else "warn"
    yield Check("memory", status, f"{free} MiB available", "" if status == "ok" else "end something, or add memory")
    ksm = Path("/sys/kernel/mm/ksm/run")
    if ksm.exists() and ksm.read_text().strip() == "1":
        remedy = "echo 2 > /sys/kernel/mm/ksm/run"
        yield Check("ksm", "warn", "kernel same-page merging is on: a side channel between VMs", remedy)


_EXAMINATIONS = (_packages, _directories, _hypervisor, _image, _memory)
