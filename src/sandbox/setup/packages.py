"""The Debian packages that this project needs: `python3 -m sandbox.setup.packages [--check]`.

Runs with the system's Python before anything from PyPI is installed. A second run changes nothing and takes
a few hundredths of a second.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import ConfigError
from sandbox.setup.sources import Release, debian_sources, host_release, with_backports

BACKPORTS_FILE = Path("/etc/apt/sources.list.d/sandbox-backports.sources")
HYPERVISOR = {
    # package: oldest major version that has what restoring a shared template needs
    "qemu-system-x86": 9,
    "libvirt-daemon-driver-qemu": 10,
    "libvirt0": 10,
    "libvirt-dev": 10,
}
TOOLS = (
    "mmdebstrap",  # builds the guest's root file system
    "uidmap",  # lets mmdebstrap do so without root
    "erofs-utils",
    "busybox-static",  # the guest's initramfs
    "zstd",  # unpacks the guest's kernel
    "ca-certificates",  # pip
    "pkg-config",  # libvirt-python is published as source only
    "gcc",
    "libc6-dev",
    "python3-dev",
    "python3-venv",
)
_BACKPORTED_TO = 12  # the release whose own QEMU and libvirt are too old


@dataclass(frozen=True)
class Plan:
    """What is still to do as root: perhaps one source file, then commands in order."""

    backports: str | None
    commands: tuple[tuple[str, ...], ...]

    def shell(self) -> str:
        """Return the plan as one line that a user can give to root."""
        steps = [shlex.join(command) for command in self.commands]
        if self.backports is not None:
            lines = " ".join(shlex.quote(line) for line in self.backports.splitlines())
            steps.insert(0, f"umask 022 && printf '%s\\n' {lines} > {BACKPORTS_FILE}")
        return f"sudo sh -c {shlex.quote(' && '.join(steps))}"


def missing() -> list[str]:
    """Return the packages that are absent or too old, by asking dpkg once."""
    names = [*HYPERVISOR, *TOOLS]
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status} ${Version}\n", *names]
    try:
        answer = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError("dpkg-query is not there, expected a Debian system: use Debian 12 or newer") from None
    return not_satisfied(answer.stdout)


def not_satisfied(installed: str) -> list[str]:
    """Return the needed packages which `installed` (lines of name, status and version) lacks."""
    versions: dict[str, str] = {}
    for line in installed.splitlines():
        name, _, rest = line.partition(" ")
        status, _, version = rest.partition(" ")
        if status == "installed":
            versions[name] = version
    return [name for name in (*HYPERVISOR, *TOOLS) if _major(versions.get(name)) < HYPERVISOR.get(name, 0)]


def _major(version: str | None) -> int:
    """Return the first number of the upstream version, -1 for a package that is absent."""
    if version is None:
        return -1
    digits = version.rpartition(":")[2].partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def plan(wanted: list[str], release: Release, root: Path = Path("/")) -> Plan:
    """Decide how to get `wanted` on this release of Debian."""
    from_backports = [name for name in wanted if name in HYPERVISOR and release.version == _BACKPORTED_TO]
    from_release = [name for name in wanted if name not in from_backports]
    apt_get = ("apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3")
    install = (*apt_get, "install", "--no-install-recommends")
    commands: list[tuple[str, ...]] = [(*apt_get, "update")]
    stanza = None
    if from_release:
        commands.append((*install, *from_release))
    if from_backports:
        sources = debian_sources(release, root)
        backports = with_backports(sources, release)[-1]
        stanza = None if backports in sources else backports.stanza()
        commands.append((*install, "-t", backports.suite, *from_backports))
    return Plan(stanza, tuple(commands))


def install() -> int:
    """Install what is missing. Returns an exit status; speaks on stderr, of apt only when it fails."""
    wanted = missing()
    if not wanted:
        return 0
    todo = plan(wanted, host_release())
    if os.geteuid() != 0:
        _say(f"these Debian packages are missing or too old: {' '.join(wanted)}\nrun as root:")
        _say(todo.shell())
        return 1
    _say(f"installing Debian packages: {' '.join(wanted)}")
    if todo.backports is not None:
        _say(f"adding {BACKPORTS_FILE}")
        BACKPORTS_FILE.write_text(todo.backports)
        BACKPORTS_FILE.chmod(0o644)  # whatever the umask is: a build of an image reads it as any user
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    for command in todo.commands:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode:
            _say(f"{done.stdout}\nfailed: {shlex.join(command)}")
            _say("check apt's sources and the network, then run this again")
            return 1
    still = missing()
    if still:
        _say(f"still missing or too old after the installation: {' '.join(still)}: look for pinned or held packages")
    return 1 if still else 0


def main(arguments: list[str]) -> int:
    try:
        if arguments == ["--check"]:
            wanted = missing()
            if wanted:
                _say(f"missing or too old: {' '.join(wanted)}")
            return 1 if wanted else 0
        if arguments:
            _say("usage: python3 -m sandbox.setup.packages [--check]")
            return 2
        return install()
    except ConfigError as error:
        _say(str(error))
        return 1


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
