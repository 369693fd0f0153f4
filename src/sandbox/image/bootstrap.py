"""mmdebstrap, which unpacks Debian packages into a directory and runs our scripts there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox.errors import ImageError
from sandbox.image.command import last_lines, run_owned
from sandbox.image.manifest import PackageRecord
from sandbox.setup.sources import Source

_NETWORK = re.compile(r"Failed to fetch|Could not (?:resolve|connect)|Temporary failure|Unable to connect|Release file")
_KEPT_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "all_proxy")


def bootstrap(
    what: str,
    packages: Sequence[str],
    hooks: Sequence[str],
    sources: Sequence[Source],
    variables: Mapping[str, str],
    work: Path,
) -> None:
    """Unpack Debian's essential packages and `packages` somewhere, and run `hooks` there, as mmdebstrap defines them.

    The hooks see `variables`: scripts travel that way, because the users of an unprivileged namespace may not be able
    to read our files. Works as root, and unprivileged where user namespaces are allowed. If it fails, no process of it
    is left, and the `ImageError` says that `what` could not be built.
    """
    log = work / "mmdebstrap.log"
    environment = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    # SOURCE_DATE_EPOCH must not be among them: byte code would then be tied to hashes, which makes imports slower.
    environment |= {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "DEBIAN_FRONTEND": "noninteractive", **variables}
    if os.geteuid() == 0:
        # Here a dead builder's leftovers are found and removed. Without root the directory must be one that
        # the namespace's users can reach, which the caller's home often is not.
        environment["TMPDIR"] = str(work)
    try:
        status = run_owned(_command(packages, hooks, sources), environment, log, work)
    except OSError as error:
        raise ImageError(f"mmdebstrap could not be started: {error}") from error
    if status:
        raise ImageError(_explain(what, status, last_lines(log), sources))


def read_packages(listing: Path) -> tuple[PackageRecord, ...]:
    """Return the packages of a list that a hook wrote: on each line a name, a space and a version."""
    lines = listing.read_text().splitlines()
    records = (PackageRecord(name=name, version=version) for name, _, version in (x.partition(" ") for x in lines))
    return tuple(sorted(records, key=lambda record: record.name))


def _command(packages: Sequence[str], hooks: Sequence[str], sources: Sequence[Source]) -> list[str]:
    command = ["mmdebstrap", "--mode=root" if os.geteuid() == 0 else "--mode=unshare"]
    command += ["--variant=essential", "--format=null", "--architectures=amd64", "--skip=cleanup"]
    command += ["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Retries 3"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")]
    command += [f"--include={','.join(packages)}", *(f"--customize-hook={hook}" for hook in hooks)]
    return [*command, sources[0].suite, "-", *(source.line() for source in sources)]


def _explain(what: str, status: int, output: str, sources: Sequence[Source]) -> str:
    if status == 127:
        return "the command `mmdebstrap` is missing: run `python3 -m sandbox.setup.packages`"
    said = f"{what} could not be built, mmdebstrap ended with status {status}:\n{output}\n"
    if _NETWORK.search(output):
        mirrors = ", ".join(sorted({source.uri for source in sources}))
        return f"{said}expected an answer from {mirrors}: check network and proxy, or change apt's sources"
    if "Unable to locate package" in output:
        return f"{said}expected every package to be in Debian {sources[0].suite}, main: correct the recipe"
    if "newuidmap" in output or "subuid" in output or "unprivileged" in output:
        return (
            f"{said}expected user namespaces with subordinate ids: install the package uidmap and give this user a "
            "range in /etc/subuid and /etc/subgid, or run the build as root"
        )
    return f"{said}expected a complete run: see the lines above, and `python3 -m sandbox.setup.packages --check`"
