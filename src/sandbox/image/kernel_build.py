"""The minimal kernel: Debian's source, compiled with the few options that a guest needs."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from pathlib import Path

from sandbox.image.bootstrap import bootstrap, read_packages
from sandbox.image.layer import ARCH, KERNEL, RECORD, Layer, file_record, kernel_sources
from sandbox.image.manifest import canonical_json, digest_of
from sandbox.paths import resource
from sandbox.setup.sources import Release

FORMAT = 1
CONFIG = "kernel.config"
KERNEL_BYTES = 3 << 30
"""What the source and its object files take while it is compiled."""
_OPTIONS, _SCRIPT = "kernel-minimal.config", "build-kernel"
_VERSION, _PACKAGES = "version", "packages"
_TOOLS = ("bc", "binutils", "bison", "flex", "gcc", "libc6-dev", "libelf-dev", "make", "xz-utils")


def kernel_key(release: Release) -> str:
    """Return the digest of what a minimal kernel is made from. The state of the mirror is not among it."""
    return digest_of(
        {
            "format": FORMAT,
            "arch": ARCH,
            "suite": release.codename,
            "tools": _TOOLS,
            **{name: hashlib.sha256(_resource(name).encode()).hexdigest() for name in (_OPTIONS, _SCRIPT)},
        }
    )


def build_kernel(release: Release, work: Path, target: Path) -> Layer:
    """Compile the kernel into the empty directory `target`, as a layer without modules; `work` is temporary.

    Takes minutes. Compiler and tools are unpacked beside the source and used there: this host needs none of them. If it
    fails, for want of a wanted option too, `ImageError` says why, and no process of it is left.
    """
    sources, suite = kernel_sources(release)
    variables = {
        "SANDBOX_KERNEL_SUITE": suite,
        "SANDBOX_KERNEL_CONFIG": _resource(_OPTIONS),
        "SANDBOX_BUILD_KERNEL": _resource(_SCRIPT),
    }
    results = (KERNEL, CONFIG, _VERSION, _PACKAGES)
    hooks = ['sh -c "$SANDBOX_BUILD_KERNEL" build-kernel "$1"']
    hooks += [f"download /.sandbox/{name} {shlex.quote(str(work / name))}" for name in results]
    bootstrap("the minimal kernel", _TOOLS, hooks, sources, variables, work)
    for name in (KERNEL, CONFIG):
        shutil.move(work / name, target / name)
    files = {path.name: file_record(path) for path in sorted(target.iterdir())}
    version, packages = (work / _VERSION).read_text().strip(), read_packages(work / _PACKAGES)
    layer = Layer(kernel=version, packages=packages, pip=(), modules=(), files=files)
    (target / RECORD).write_bytes(canonical_json(layer.model_dump(mode="json")))
    return layer


def _resource(name: str) -> str:
    return (resource("images") / name).read_text()
