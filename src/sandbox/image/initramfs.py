"""The initramfs: a static busybox, the modules that find the disk, and the agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

APPLETS = ("cp", "insmod", "mkdir", "mkswap", "mount", "poweroff", "sh", "swapon", "switch_root")

_DIRECTORY, _FILE, _LINK = 0o040000, 0o100000, 0o120000


@dataclass(frozen=True)
class Entry:
    """One member of a cpio archive; `mode` includes the file's type."""

    path: str
    mode: int
    data: bytes = b""


def directory(path: str) -> Entry:
    return Entry(path, _DIRECTORY | 0o755)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    return Entry(path, _FILE | mode, data)


def link(path: str, target: str) -> Entry:
    return Entry(path, _LINK | 0o777, target.encode())


def cpio(entries: Sequence[Entry]) -> bytes:
    """Write a "newc" archive, the format that the kernel unpacks; owner root, time 0, so nothing varies."""
    archive = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\x00"
        links = 2 if entry.mode & 0o170000 == _DIRECTORY else 1
        # inode, mode, uid, gid, links, mtime, size, device of the file (2), device of a node (2), name's size, checksum
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.data
        archive += bytes(-len(archive) % 4)
    archive += bytes(-len(archive) % 512)
    return bytes(archive)


def initramfs(busybox: bytes, init: bytes, modules: Sequence[tuple[str, bytes]], agent: Mapping[str, bytes]) -> bytes:
    """Return the whole initramfs. `modules` are unpacked and in the order of loading."""
    entries = [directory("bin"), file("bin/busybox", busybox, 0o755)]
    entries += [link(f"bin/{name}", "busybox") for name in APPLETS]
    entries.append(file("init", init, 0o755))
    order = "".join(f"{name}.ko\n" for name, _ in modules)
    entries += [directory("modules"), file("modules/order", order.encode())]
    entries += [file(f"modules/{name}.ko", data) for name, data in modules]
    entries.append(directory("agent"))
    entries += [directory(f"agent/{name}") for name in sorted({name.rpartition("/")[0] for name in agent} - {""})]
    entries += [file(f"agent/{name}", data) for name, data in sorted(agent.items())]
    return cpio(entries)
