"""The slow part of a build: Debian packages to a read-only root file system, and the kernel beside it."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox.errors import ImageError
from sandbox.image.command import last_lines, run_owned
from sandbox.image.manifest import PackageRecord
from sandbox.paths import resource
from sandbox.setup.sources import Source

ROOT, PACKAGES, KERNEL_PACKAGE = "root.erofs", "packages", "kernel.deb"
_NETWORK = re.compile(r"Failed to fetch|Could not (?:resolve|connect)|Temporary failure|Unable to connect|Release file")
_KEPT_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "all_proxy")


def build_rootfs(
    packages: Sequence[str],
    sources: Sequence[Source],
    kernel_suite: str,
    wheels: Path | None,
    work: Path,
) -> tuple[PackageRecord, ...]:
    """Make `root.erofs` and fetch `kernel.deb` into `work`; return the packages that the root consists of.

    Works as root, and unprivileged where user namespaces are allowed. If it fails, no process of it is left.
    """
    log = work / "mmdebstrap.log"
    environment = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    # SOURCE_DATE_EPOCH must not be among them: byte code would then be tied to hashes, which makes imports slower.
    environment |= {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "DEBIAN_FRONTEND": "noninteractive"}
    environment |= {
        "SANDBOX_BUILD_START": str(int(time.time())),
        "SANDBOX_KERNEL_SUITE": kernel_suite,
        "SANDBOX_CUSTOMIZE": (resource("images") / "customize").read_text(),
    }
    if os.geteuid() == 0:
        # Here a dead builder's leftovers are found and removed. Without root the directory must be one that
        # the namespace's users can reach, which the caller's home often is not.
        environment["TMPDIR"] = str(work)
    try:
        status = run_owned(_command(packages, sources, wheels, work), environment, log, work)
    except OSError as error:
        raise ImageError(f"mmdebstrap could not be started: {error}") from error
    if status:
        raise ImageError(_explain(status, last_lines(log), sources))
    lines = (work / PACKAGES).read_text().splitlines()
    records = (PackageRecord(name=name, version=version) for name, _, version in (x.partition(" ") for x in lines))
    return tuple(sorted(records, key=lambda record: record.name))


def _command(packages: Sequence[str], sources: Sequence[Source], wheels: Path | None, work: Path) -> list[str]:
    command = ["mmdebstrap", "--mode=root" if os.geteuid() == 0 else "--mode=unshare"]
    command += ["--variant=essential", "--format=null", "--architectures=amd64", "--skip=cleanup"]
    command += ["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Retries 3"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")]
    command += [f"--include={','.join(packages)}"]
    if wheels is not None:
        command.append(f"--customize-hook=tar-in {shlex.quote(str(wheels))} /usr/local")
    # By the environment, because the users of an unprivileged namespace may not be able to read our files.
    command.append('--customize-hook=sh -c "$SANDBOX_CUSTOMIZE" customize "$1"')
    for name in (ROOT, PACKAGES, KERNEL_PACKAGE):
        command.append(f"--customize-hook=download /.sandbox/{name} {shlex.quote(str(work / name))}")
    return [*command, sources[0].suite, "-", *(source.line() for source in sources)]


def _explain(status: int, output: str, sources: Sequence[Source]) -> str:
    if status == 127:
        return "the command `mmdebstrap` is missing: run `python3 -m sandbox.setup.packages`"
    what = f"the guest's root file system could not be built, mmdebstrap ended with status {status}:\n{output}\n"
    if _NETWORK.search(output):
        mirrors = ", ".join(sorted({source.uri for source in sources}))
        return f"{what}expected an answer from {mirrors}: check network and proxy, or change apt's sources"
    if "Unable to locate package" in output:
        return f"{what}expected every package to be in Debian {sources[0].suite}, main: correct the recipe"
    if "newuidmap" in output or "subuid" in output or "unprivileged" in output:
        return (
            f"{what}expected user namespaces with subordinate ids: install the package uidmap and give this user a "
            "range in /etc/subuid and /etc/subgid, or run the build as root"
        )
    return f"{what}expected a complete run: see the lines above, and `python3 -m sandbox.setup.packages --check`"
