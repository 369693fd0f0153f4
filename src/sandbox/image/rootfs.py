"""The slow part of a build: Debian packages to a read-only root file system, and the kernel beside it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox.image.bootstrap import bootstrap, read_packages
from sandbox.image.manifest import PackageRecord
from sandbox.paths import resource
from sandbox.setup.sources import Source

ROOT, PACKAGES, KERNEL_PACKAGE = "root.erofs", "packages", "kernel.deb"

# The agent and `init` look whether this file is there; see `guest_agent/boot.py`.
_ALLOW_SUDO = 'echo "user ALL=(ALL:ALL) NOPASSWD: ALL" | install -m 0440 /dev/stdin "$1/etc/sudoers.d/sandbox"'


def build_rootfs(
    packages: Sequence[str],
    sources: Sequence[Source],
    kernel_suite: str,
    wheels: Path | None,
    work: Path,
    *,
    sudo: bool = False,
) -> tuple[PackageRecord, ...]:
    """Make `root.erofs` and fetch `kernel.deb` into `work`; return the packages that the root consists of.

    Works as root, and unprivileged where user namespaces are allowed. If it fails, no process of it is left.
    """
    variables = {
        "SANDBOX_BUILD_START": str(int(time.time())),
        "SANDBOX_KERNEL_SUITE": kernel_suite,
        "SANDBOX_CUSTOMIZE": (resource("images") / "customize").read_text(),
    }
    hooks = [] if wheels is None else [f"tar-in {shlex.quote(str(wheels))} /usr/local"]
    if sudo:
        hooks.append(_ALLOW_SUDO)
    hooks.append('sh -c "$SANDBOX_CUSTOMIZE" customize "$1"')
    hooks += [f"download /.sandbox/{name} {shlex.quote(str(work / name))}" for name in (ROOT, PACKAGES, KERNEL_PACKAGE)]
    bootstrap("the guest's root file system", packages, hooks, sources, variables, work)
    return read_packages(work / PACKAGES)
