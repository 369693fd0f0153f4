"""Runs as root in a guest, whose kernel has control groups of version 2, with our own two modules beside it.

Prints one JSON object: what was seen by name. Each section makes a group as a host would find it.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import cgroup
import cgroup_place

ROOT = Path("/sys/fs/cgroup")
MIB = 1024 * 1024
USER = 65534
CAPS = cgroup.Caps(memory_bytes=32 * MIB, pids=4, cpus=0.5)
seen: dict[str, object] = {}


def in_child(function: Callable[[], object]) -> object:
    """Return what a function returns in a process of its own, so that what it does to itself is gone afterwards."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(into, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(into)
    os.waitpid(pid, 0)
    return json.loads(os.read(out, 65536) or b'"died"')


def enter(path: Path) -> None:
    (path / "cgroup.procs").write_text("0")


def fill(group: cgroup.Group | None, mib: int) -> int:
    """Return the signal that ends a process which takes so much memory, in the group or without one; 0 for none."""
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(ready, 1)
        kept = bytearray(os.urandom(MIB)) * mib
        os._exit(0 if kept else 1)
    if group is not None:
        group.enter(pid)
    os.write(go, b"x")
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def places() -> dict[str, object]:
    found = cgroup_place.find_places("auto")
    return {"parents": sorted({str(path) for path in found.parents.values()}), "refused": found.refused}


def undelegated() -> object:
    path = ROOT / "service"
    path.mkdir()
    enter(path)
    return places()


def delegated() -> object:
    path = ROOT / "delegated"
    path.mkdir()
    os.setxattr(path, "user.delegate", b"1")
    enter(path)
    found = cgroup_place.find_places("auto")
    group = cgroup.Group.make("vm", found.parents, found.versions, CAPS)
    result: dict[str, object] = {
        "parents": sorted({str(parent) for parent in found.parents.values()}),
        "own": Path("/proc/self/cgroup").read_text().strip(),
        "bounds": [(path / "vm" / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max")],
        "before": group.oom_kills(),
        "signal": fill(group, 64),
        "after": group.oom_kills(),
        "without": fill(None, 64),
        "within": fill(group, 8),
    }
    sleeper = os.fork()
    if sleeper == 0:
        signal.pause()
    group.enter(sleeper)
    result["removed while it lives"] = group.remove()
    os.kill(sleeper, signal.SIGKILL)
    os.waitpid(sleeper, 0)
    result["removed"] = group.remove(1.0)
    result["exists"] = (path / "vm").exists()
    return result


def crowded() -> object:
    """A delegated group in which somebody else lives, too."""
    path = ROOT / "crowded"
    path.mkdir()
    os.setxattr(path, "user.delegate", b"1")
    enter(path)
    other = os.fork()
    if other == 0:
        signal.pause()
    try:
        return places() | {"own": Path("/proc/self/cgroup").read_text().strip()}
    finally:
        os.kill(other, signal.SIGKILL)


def unprivileged() -> object:
    path = ROOT / "users"
    path.mkdir()
    for name in ("", "cgroup.procs", "cgroup.subtree_control"):
        os.chown(path / name, USER, USER)
    enter(path)
    os.setgid(USER)
    os.setuid(USER)
    found = cgroup_place.find_places("auto")
    group = cgroup.Group.make("vm", found.parents, found.versions, CAPS)
    result = places() | {"signal": fill(group, 64), "kills": group.oom_kills()}
    return result | {"removed": group.remove(1.0)}


def stranger() -> object:
    """The same user in a group that nobody gave away."""
    path = ROOT / "roots"
    path.mkdir()
    enter(path)
    os.setgid(USER)
    os.setuid(USER)
    return places()


def children() -> int:
    """Return how many children a process in a group can have at the same time."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        found = cgroup_place.find_places("/named")
        cgroup.Group.make("vm", found.parents, found.versions, CAPS).enter(os.getpid())
        count = 0
        try:
            while count < 50:
                if os.fork() == 0:
                    signal.pause()
                count += 1
        except BlockingIOError:
            pass
        os.write(writer, str(count).encode())
        (ROOT / "named" / "vm" / "cgroup.kill").write_text("1")
        signal.pause()
    os.waitpid(child, 0)
    return int(os.read(reader, 100))


for section in (undelegated, delegated, crowded, unprivileged, stranger):
    seen[section.__name__] = in_child(section)
sys.stdout.write(json.dumps(seen | {"children": children()}))
