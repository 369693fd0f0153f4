"""Files and whole directories between host and guest: what arrives, what is skipped, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import pytest

from sandbox.errors import ConfigError, GuestFileError, HostFileError
from sandbox.vm import VM

ODD = ["with space", "new\nline", "-rf", "üñ", os.fsdecode(b"bad\xff"), "x" * 255]


class DownloadBounds(TypedDict, total=False):
    """What a copy may take."""

    max_bytes: int
    max_entries: int


def contents(top: Path) -> dict[str, tuple[int, tuple[bytes, int] | None]]:
    """Return the mode of everything below a directory, and content and time of the files."""
    return {
        str(path.relative_to(top)): (
            stat.S_IMODE(path.stat().st_mode),
            (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None,
        )
        for path in top.rglob("*")
        if not path.is_symlink()
    }


def names(top: Path) -> list[str]:
    """Return the names of what is in a directory."""
    return [path.name for path in top.iterdir()]


def plant(top: Path) -> None:
    """Make nested directories, odd names, odd modes, an empty directory and what cannot be copied."""
    (top / "a" / "b" / "empty").mkdir(parents=True)
    for number, name in enumerate(ODD):
        (top / name).write_bytes(bytes([number]) * 1000 * number)
        (top / "a" / name).mkdir()
        (top / "a" / name / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    (top / "a" / "program").write_bytes(b"#!/bin/sh\n")
    (top / "a" / "program").chmod(0o755)
    (top / "a" / "secret").write_bytes(os.urandom(3_000_000))
    (top / "a" / "secret").chmod(0o600)
    (top / "a" / "b").chmod(0o750)


async def test_a_directory_goes_in_and_comes_back_the_same(vm: VM, tmp_path: Path) -> None:
    """Names, modes, times, contents, links and empty directories survive both ways; special files are named instead."""
    source, back = tmp_path / "source", tmp_path / "back"
    source.mkdir()
    plant(source)
    expected = contents(source)
    (source / "link").symlink_to("/etc/passwd")
    (source / "a" / "up").symlink_to("..")
    (source / "dangling").symlink_to("a/none")
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
    up = await vm.upload(source, "deep/down/tree")
    assert up.skipped == {"fifo": "it is a fifo", "socket": "it is a socket"}
    assert (up.links, up.errors) == (3, {})
    files = [content[0] for _, content in expected.values() if content is not None]
    assert (up.files, up.directories) == (len(files), len(expected) - len(files))
    assert up.bytes == sum(map(len, files))
    assert (await vm.exec("stat -c '%a %U' deep/down/tree/a/program deep/down/tree/a/b")).text == "755 user\n750 user\n"
    await vm.exec("cd deep/down/tree; ln -sfn /etc/shadow link; mkfifo a/fifo; ln -s .. a/b/up; chmod 6755 a/program")
    down = await vm.download("deep/down/tree", back)
    assert set(down.skipped) == {"link", "a/fifo"}
    assert "absolute" in down.skipped["link"]
    assert (down.files, down.directories, down.bytes, down.links) == (up.files, up.directories, up.bytes, 3)
    assert contents(back) == expected
    assert [str((back / name).readlink()) for name in ("a/up", "dangling", "a/b/up")] == ["..", "a/none", ".."]
    assert json.loads(json.dumps(asdict(down)))["skipped"] == dict(down.skipped)
    again = await vm.upload(source, "deep/down/tree")
    assert (again.files, again.errors) == (up.files, {}), "a second upload replaces the first"
    with pytest.raises(GuestFileError) as taken:
        await vm.upload(source, "deep/down/tree", overwrite=False)
    assert taken.value.errno == errno.EEXIST
    await vm.exec("mkdir nothing")
    assert (await vm.download("nothing", tmp_path / "nothing")).directories == 0
    assert names(tmp_path / "nothing") == []


async def test_a_single_file_goes_in_and_comes_back(vm: VM, tmp_path: Path) -> None:
    """A file is copied like a directory, with its mode; what exists on the host is never written over."""
    source, back = tmp_path / os.fsdecode(b"odd\xff name"), tmp_path / "back"
    source.write_bytes(os.urandom(2_000_000))
    source.chmod(0o750)
    up = await vm.upload(str(source), "some/where/file")
    assert (up.files, up.directories, up.bytes, up.skipped) == (1, 0, 2_000_000, {})
    assert (await vm.files.stat("some/where/file")).mode == 0o750
    down = await vm.download("some/where/file", back)
    assert (down.files, down.bytes, back.read_bytes()) == (1, 2_000_000, source.read_bytes())
    assert stat.S_IMODE(back.stat().st_mode) == 0o750
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "dangling").symlink_to(tmp_path / "target")
    assert (await vm.upload(tmp_path / "link", "linked")).bytes == 2_000_000
    for taken in (back, tmp_path / "dangling", tmp_path):
        with pytest.raises(HostFileError) as refusal:
            await vm.download("linked", taken)
        assert refusal.value.errno == errno.EEXIST
    assert not (tmp_path / "target").exists()
    root = await vm.upload(source, "/etc/owned", user="root")
    assert root.files == 1
    assert (await vm.files.stat("/etc/owned")).uid == 0
    await vm.exec("ln -s some/where/file pointer; : > empty")
    assert (await vm.download("pointer", tmp_path / "pointed")).bytes == 2_000_000
    assert (await vm.download("empty", tmp_path / "empty")).bytes == 0


async def test_what_cannot_be_copied_is_refused(vm: VM, tmp_path: Path) -> None:
    """Missing, special, forbidden and too much: each has its error, the VM works on, and the host is not touched."""
    await vm.exec(
        "mkfifo fifo; mkdir -p tree/locked; echo x > tree/a; echo yy > tree/b; chmod 0 tree/locked; ln -s l l"
    )
    for source, number in [
        ("none", errno.ENOENT),
        ("fifo", errno.EINVAL),
        ("/dev/zero", errno.EINVAL),
        ("l", errno.ELOOP),
    ]:
        with pytest.raises(GuestFileError) as refusal:
            await vm.download(source, tmp_path / "target")
        assert refusal.value.errno == number
        assert not (tmp_path / "target").exists()
    part = await vm.download("tree", tmp_path / "part")
    assert (part.files, part.errors) == (2, {"locked": "Permission denied"}), "what cannot be read ends nothing"
    with pytest.raises(GuestFileError) as refusal:
        await vm.download("tree", tmp_path / "strict", strict=True)
    assert (refusal.value.errno, refusal.value.filename) == (errno.EACCES, "tree/locked")
    (tmp_path / "taken").mkdir()
    with pytest.raises(HostFileError) as taken:
        await vm.download("tree", tmp_path / "taken")
    assert taken.value.errno == errno.EEXIST
    await vm.exec("rmdir tree/locked")
    assert (await vm.download("tree", tmp_path / "fits", max_bytes=5, max_entries=2)).bytes == 5
    limits: list[tuple[str, DownloadBounds]] = [
        ("tree", {"max_bytes": 4}),
        ("tree", {"max_entries": 1}),
        ("tree/b", {"max_bytes": 2}),
    ]
    for source, limit in limits:
        with pytest.raises(HostFileError) as large:
            await vm.download(source, tmp_path / f"{source[-1]}{limit}", **limit)
        assert large.value.errno == errno.EFBIG
    os.mkfifo(tmp_path / "fifo")
    for wrong in (tmp_path / "none", tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="no"):
            await vm.upload(wrong, "target")
    (tmp_path / "file").write_bytes(b"x")
    for target, number in [("tree", errno.EISDIR), ("tree/a/b", errno.ENOTDIR), ("/etc/passwd", errno.EACCES)]:
        with pytest.raises(GuestFileError) as refusal:
            await vm.upload(tmp_path / "file", target)
        assert refusal.value.errno == number, target
    with pytest.raises(GuestFileError):
        await vm.upload(tmp_path / "taken", "tree/a")
    assert await vm.files.read("tree/a") == b"x\n"


FORGE = """
import json, os, signal, struct, subprocess, sys
pid = int(subprocess.check_output(["pgrep", "-u", "user", "-f", "sandbox-agent"]))
os.kill(pid, signal.SIGSTOP)
top = dict(type="directory", size=0, mode=0o755, mtime=0, uid=0, gid=0)
entry = dict(type="directory", size=0, mode=0o755, mtime=0, name=json.loads(sys.argv[1]))
with open(f"/proc/{pid}/fd/4", "wb") as answers:
    for fields in ({"stat": top}, {"entries": [entry], "errors": []}, {"done": True}):
        body = json.dumps(fields).encode()
        answers.write(struct.pack("!IB", len(body), 1) + body)
"""


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "", ".", "a\0b", "honest"])
async def test_a_guest_that_lies_about_names_writes_nowhere(vm: VM, tmp_path: Path, name: str) -> None:
    """Forged answers of a file server that lead out of the copy are refused; as a control, an honest one is taken."""
    assert not await vm.files.exists("anything"), "now there is a file server that waits to be asked"
    forged = await vm.run(FORGE, args=[json.dumps(name)], user="root")
    assert forged.ok, forged.stderr
    target = tmp_path / "below" / "copy"
    target.parent.mkdir()
    if name == "honest":
        assert (await vm.download("tree", target)).directories == 1
        assert names(target) == ["honest"]
    else:
        with pytest.raises(HostFileError, match="no name within"):
            await vm.download("tree", target)
        assert names(target) == []
    assert names(tmp_path) == ["below"]
    assert names(target.parent) == ["copy"]
