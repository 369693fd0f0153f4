# ruff: noqa: S108 - these directories are looked at, nothing is put there
"""What runs inside a golden guest right before it is frozen: prints, as JSON, what must not be in every clone.

The host sends this file's text and runs it as root with the guest's own Python: standard library only, nothing is
written. Arguments: the machine id that the host has given, and the host's own name. It prints a list of pairs, the
name of a rule and where it found something. It never prints the content of what it finds.
"""

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PLACES = [
    "/dev/shm",
    "/etc",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/var/lib/dbus",
    "/var/lib/systemd",
    "/var/lib/urandom",
    "/var/log",
    "/var/spool",
    "/var/tmp",
    "/workspace",
]
OURS = {"/etc/alternatives", "/etc/ssl/certs", "/run/scripts", "/run/lock"}
VOLATILE = ("/dev/shm/", "/tmp/", "/var/tmp/")
READ = ("/dev/shm/", "/home/", "/root/", "/run/", "/srv/", "/tmp/", "/var/tmp/", "/workspace/")
HISTORIES = {".ash_history", ".bash_history", ".lesshst", ".node_repl_history", ".python_history", ".sh_history"}
HISTORIES |= {".sqlite_history", ".viminfo", ".zsh_history"}
SEEDS = {"random-seed", "random.seed", "urandom.seed"}
CREDENTIALS = {".env", ".git-credentials", ".netrc", ".pgpass", ".pypirc", ".vault-token"}
CREDENTIAL_PATHS = (".aws/credentials", ".cargo/credentials.toml", ".docker/config.json", ".kube/config")
KEY_NAMES = re.compile(r"(?:^id_[a-z0-9]+|\.(?:pem|key|p12|pfx|ppk)|_key)$")
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY")
SECRET_NAMES = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(?:API|ACCESS|PRIVATE)_?KEY)(?:$|_)", re.IGNORECASE
)
SECRET_VALUES = re.compile(r"^(?:gh[pousr]_|github_pat_|AKIA|ASIA|sk-|xox[abprs]-|glpat-|eyJ[\w-]+\.eyJ)")
KERNEL_THREAD = 0x00200000
ZYGOTE = "python3\0-u\0sandbox-agent/zygote\0"
"""What the zygote shows as its command line."""
READ_BYTES = 64 * 1024
MOST_FILES = 20_000
MOST_FINDINGS = 100

findings: list[tuple[str, str]] = []


def found(rule: str, where: str) -> None:
    if len(findings) < MOST_FINDINGS:
        findings.append((rule, where[:300]))


def text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def walk() -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield every file of the places where something is written, without following links."""
    waiting, left = list(PLACES), MOST_FILES
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            left -= 1
            if left < 0:
                found("inspection_cut", f"more than {MOST_FILES} files")
                return
            if entry.is_dir(follow_symlinks=False):
                if entry.path not in OURS:
                    waiting.append(entry.path)
                    yield entry.path, None
            else:
                yield entry.path, entry.stat(follow_symlinks=False)


def look_at(path: str, status: os.stat_result | None) -> None:
    """Check one file, or a directory that has no status, by place and kind."""
    if path.startswith(VOLATILE):
        found("temporary_file", path)
    if status is None:
        return
    if stat.S_ISSOCK(status.st_mode):
        found("socket_file", path)
    if stat.S_ISREG(status.st_mode) and status.st_size:
        for rule, is_one in SIGNS.items():
            if is_one(path, path.rpartition("/")[2]):
                found(rule, path)


def holds_private_key(path: str, name: str) -> bool:
    """Read the beginning of a file, but only where secrets are put down: what is read stays in every clone's cache."""
    if name.startswith("ssh_host_") or not (path.startswith(READ) or KEY_NAMES.search(name)):
        return False
    try:
        with Path(path).open("rb") as file:
            return PRIVATE_KEY.search(file.read(READ_BYTES)) is not None
    except OSError:
        return False


SIGNS: dict[str, Callable[[str, str], bool]] = {
    "log_file": lambda path, _: path.startswith("/var/log/"),
    "pid_file": lambda path, _: path.endswith(".pid") and path.startswith(("/run/", *VOLATILE)),
    "shell_history": lambda _, name: name in HISTORIES,
    "random_seed": lambda _, name: name in SEEDS,
    "secret_file": lambda path, name: name in CREDENTIALS or path.endswith(CREDENTIAL_PATHS),
    "ssh_host_key": lambda _, name: name.startswith("ssh_host_") and name.endswith("_key"),
    "private_key": holds_private_key,
}


def look_at_identity(machine_id: str, host_name: str) -> None:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        if text(path).strip() not in ("", machine_id):
            found("machine_identity", path)
    if host_name and text("/etc/hostname").strip() == host_name:
        found("machine_identity", "/etc/hostname")


def look_at_sockets() -> None:
    for kind in ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6"):
        for line in text(f"/proc/net/{kind}").splitlines()[1:]:
            listens = line.split()[3] == "0A" or not kind.startswith("tcp")
            found("network_listener" if listens else "network_connection", f"{kind} {line.split()[1]}")
    for line in text("/proc/net/packet").splitlines()[1:]:
        found("network_listener", f"packet {line.split()[3]}")
    for line in text("/proc/net/unix").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8:
            found("unix_listener", fields[7])
    for kind in ("msg", "sem", "shm"):
        for line in text(f"/proc/sysvipc/{kind}").splitlines()[1:]:
            found("ipc_object", f"{kind} {line.split()[1]}")


def look_at_processes() -> None:
    """Report every process but the agent, its zygote (the oldest process with its command line) and this program."""
    zygotes = (entry.name for entry in Path("/proc").glob("[0-9]*") if text(f"/proc/{entry.name}/cmdline") == ZYGOTE)
    ours = {1, os.getpid(), min(map(int, zygotes), default=1)}
    for entry in (path.name for path in Path("/proc").iterdir()):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        name, _, fields = text(f"/proc/{entry}/stat").partition("(")[2].rpartition(")")
        if not fields or int(fields.split()[6]) & KERNEL_THREAD:
            continue
        if int(entry) not in ours:
            found("leftover_process", f"{name}, process {entry}")
        for pair in text(f"/proc/{entry}/environ").split("\0"):
            variable, _, value = pair.partition("=")
            if value and (SECRET_NAMES.search(variable) or SECRET_VALUES.search(value)):
                found("secret_environment", f"{variable} of process {entry}")
            if variable == "PYTHONHASHSEED" and value != "random":
                found("random_seed", f"{variable} of process {entry}")


def main() -> None:
    for path, status in walk():
        look_at(path, status)
    look_at_identity(*sys.argv[1:3])
    look_at_sockets()
    look_at_processes()
    sys.stdout.write(json.dumps(findings))


if __name__ == "__main__":
    Path(__file__).unlink()  # so that it is not in every clone
    main()
