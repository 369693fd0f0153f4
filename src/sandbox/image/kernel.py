"""What must be known about a Linux kernel package to boot it quickly: its uncompressed image and its modules' order."""

from __future__ import annotations

import gzip
import lzma
import subprocess
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from sandbox.errors import ImageError

_MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x1f\x8b", "gzip"),
    (b"\x7fELF", "none"),
)


_SIGNED = b"~Module signature appended~\n"
_SIGNATURE_BYTES = 12


def vmlinux(bzimage: bytes) -> bytes:
    """Return the ELF image inside a bzImage; QEMU starts it directly, without the decompressor's half second.

    The fields are those of the x86 boot protocol, "The Real-Mode Kernel Header", version 2.08 or newer.
    """
    if len(bzimage) < 0x260 or bzimage[0x202:0x206] != b"HdrS" or _number(bzimage, 0x206, 2) < 0x208:
        raise ImageError("the kernel is not a bzImage of boot protocol 2.08 or newer: expected Debian's amd64 kernel")
    setup_sectors = bzimage[0x1F1] or 4
    start = (setup_sectors + 1) * 512 + _number(bzimage, 0x248, 4)
    payload = bzimage[start : start + _number(bzimage, 0x24C, 4)]
    kind = next((kind for magic, kind in _MAGICS if payload.startswith(magic)), "unknown")
    # The build appends the unpacked size in 4 bytes, except to gzip, whose own trailer ends with it.
    image = decompress(payload if kind in ("gzip", "none") else payload[:-4])
    if not image.startswith(b"\x7fELF"):
        raise ImageError("the kernel's payload is no ELF image: expected Debian's amd64 kernel")
    return image


def decompress(data: bytes) -> bytes:
    """Unpack zstd, xz or gzip, told by the first bytes; an ELF file is returned as it is."""
    kind = next((kind for magic, kind in _MAGICS if data.startswith(magic)), None)
    try:
        if kind == "zstd":
            return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True).stdout
        if kind == "xz":
            return lzma.decompress(data)
        if kind == "gzip":
            return gzip.decompress(data)
    except FileNotFoundError as error:
        raise ImageError("the command `zstd` is missing: install Debian's package zstd") from error
    except (subprocess.CalledProcessError, lzma.LZMAError, EOFError, OSError, zlib.error) as error:
        raise ImageError(f"the kernel's {kind} data is damaged: build the image again") from error
    if kind is None:
        raise ImageError(f"unknown compression, starting {data[:6].hex()}: expected zstd, xz, gzip or plain ELF")
    return data


def unsigned(module: bytes) -> bytes:
    """Return an unpacked module without its signature, whose verification costs each boot time.

    A guest's modules are vouched for by the image's digest. The format is that of the kernel's `module_signature.h`:
    the signature, twelve bytes about it that end with its length, and a mark.
    """
    if not module.endswith(_SIGNED):
        return module
    end = len(module) - len(_SIGNED)
    length = int.from_bytes(module[end - 4 : end], "big")
    return module[: end - _SIGNATURE_BYTES - length]


def modinfo(module: bytes, key: str) -> list[str]:
    """Return the values of `key` in an unpacked module's `.modinfo`, which is a run of `key=value` strings."""
    prefix = key.encode() + b"="
    return [
        string[len(prefix) :].decode("ascii", "replace")
        for string in module.split(b"\x00")
        if string.startswith(prefix) and string.isascii()
    ]


def load_order(wanted: Iterable[str], module: Callable[[str], bytes], builtin: frozenset[str]) -> list[str]:
    """Return the wanted modules and all that they depend on, each after its dependencies.

    `module` returns an unpacked module's bytes by name; `builtin` names those which the kernel already contains.
    """
    order: list[str] = []
    on_the_way: set[str] = set()

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in builtin or name in on_the_way or not name:
            return
        on_the_way.add(name)
        for value in modinfo(module(name), "depends"):
            for dependency in value.split(","):
                add(dependency)
        order.append(name)

    for name in wanted:
        add(name)
    return order


def module_files(tree: Path) -> dict[str, Path]:
    """Map module names to files below a kernel's directory in `/lib/modules`."""
    return {path.name.partition(".ko")[0].replace("-", "_"): path for path in sorted(tree.rglob("*.ko*"))}


def builtin_modules(tree: Path) -> frozenset[str]:
    """Return the names in `modules.builtin`."""
    lines = (tree / "modules.builtin").read_text().splitlines()
    return frozenset(Path(line).name.partition(".ko")[0].replace("-", "_") for line in lines)


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")
