"""The kernel's payload and its modules' order."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from pathlib import Path

import pytest

from sandbox.errors import ImageError
from sandbox.image.kernel import builtin_modules, decompress, load_order, module_files, unsigned, vmlinux

ELF = b"\x7fELF" + bytes(range(256)) * 40


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


def bzimage(payload: bytes, version: int = 0x20F) -> bytes:
    """Lay out a kernel as the boot protocol says: two set-up sectors, then code, then the payload."""
    image = bytearray(3 * 512 + 64)
    image[0x1F1] = 2
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = version.to_bytes(2, "little")
    image[0x248:0x24C] = (64).to_bytes(4, "little")
    image[0x24C:0x250] = len(payload).to_bytes(4, "little")
    return bytes(image) + payload + b"what follows"


@pytest.mark.parametrize(
    "payload",
    [
        zstd(ELF) + len(ELF).to_bytes(4, "little"),
        lzma.compress(ELF) + len(ELF).to_bytes(4, "little"),
        gzip.compress(ELF),
    ],
    ids=["zstd", "xz", "gzip"],
)
def test_the_payload_is_found(payload: bytes) -> None:
    """For each compression that Debian has used."""
    assert vmlinux(bzimage(payload)) == ELF


@pytest.mark.parametrize(
    "image",
    [b"", bytes(4096), bzimage(gzip.compress(ELF), version=0x207), bzimage(gzip.compress(b"no ELF")), bzimage(b"?")],
)
def test_anything_else_is_refused(image: bytes) -> None:
    """Short, foreign, ancient, or holding something else."""
    with pytest.raises(ImageError):
        vmlinux(image)


def test_a_signature_is_taken_off() -> None:
    """As the kernel finds it: behind the module, with its length before the mark; a module without one stays whole."""
    signature = bytes(range(200))
    mark = b"~Module signature appended~\n"
    assert unsigned(ELF + signature + bytes(8) + len(signature).to_bytes(4, "big") + mark) == ELF
    assert unsigned(ELF) == ELF


@pytest.mark.parametrize("data", [zstd(ELF)[:-9], lzma.compress(ELF)[:-9], gzip.compress(ELF)[:-9]])
def test_damage_is_noticed(data: bytes) -> None:
    """A truncated file is an error of ours, not of a library."""
    with pytest.raises(ImageError, match="damaged"):
        decompress(data)


def test_modules_follow_their_dependencies() -> None:
    """Shared dependencies come once, built-in ones never, and a circle ends."""
    depends = {"erofs": "libcrc32c,netfs", "netfs": "fscache", "libcrc32c": "", "fscache": "netfs", "overlay": "netfs"}

    def module(name: str) -> bytes:
        return b"\x7fELF\x00license=GPL\x00depends=" + depends[name].encode() + b"\x00name=x\x00"

    assert load_order(["virtio-blk", "erofs", "overlay"], module, frozenset({"virtio_blk"})) == [
        "libcrc32c",
        "fscache",
        "netfs",
        "erofs",
        "overlay",
    ]


def test_files_and_built_in_names(tmp_path: Path) -> None:
    """Dashes and underscores are one, and the suffix may tell a compression."""
    (tmp_path / "fs").mkdir()
    for name in ("fs/erofs.ko", "fs/over-lay.ko.xz", "fs/crc32c.ko.zst"):
        (tmp_path / name).touch()
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio-pci.ko\nkernel/fs/ext4.ko\n")
    assert set(module_files(tmp_path)) == {"erofs", "over_lay", "crc32c"}
    assert builtin_modules(tmp_path) == {"virtio_pci", "ext4"}
