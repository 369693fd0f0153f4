"""The archive that the kernel unpacks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sandbox.image.initramfs import Entry, cpio, directory, file, initramfs, link

BUSYBOX = Path("/bin/busybox")


def test_headers_are_newc() -> None:
    """Fixed-width hexadecimal fields, four-byte alignment of name and data, and a trailer."""
    archive = cpio([file("a", b"hello", 0o755)])
    assert archive[:6] == b"070701"
    assert archive[6:14] == b"00000001"
    assert archive[14:22] == b"000081ED"
    assert archive[54:62] == b"00000005"
    assert archive[110:112] == b"a\x00"
    assert archive[112:117] == b"hello"
    assert archive[120:126] == b"070701"
    assert b"TRAILER!!!\x00" in archive
    assert len(archive) % 512 == 0


def test_equal_contents_have_equal_bytes() -> None:
    """The order of the agent's files in the mapping does not matter."""
    one = initramfs(b"bb", b"init", [("m", b"x")], {"a.py": b"1", "b.py": b"2"})
    assert one == initramfs(b"bb", b"init", [("m", b"x")], {"b.py": b"2", "a.py": b"1"})
    assert one != initramfs(b"bb", b"init", [("m", b"x")], {"a.py": b"1", "b.py": b"3"})


@pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed")
def test_another_program_can_read_it(tmp_path: Path) -> None:
    """Busybox's cpio finds the same files, modes and links."""
    entries: list[Entry] = [directory("d"), file("d/f", b"some data", 0o755), link("l", "d/f"), file("empty", b"")]
    subprocess.run([BUSYBOX, "cpio", "-i"], input=cpio(entries), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "d/f").read_bytes() == b"some data"
    assert (tmp_path / "d/f").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "l").readlink() == Path("d/f")
    assert (tmp_path / "empty").read_bytes() == b""


def test_modules_are_listed_in_order() -> None:
    """Init reads the order from a file."""
    archive = initramfs(b"", b"", [("z", b"1"), ("a", b"2")], {})
    assert b"z.ko\na.ko\n" in archive
