"""Trees that people work in survive a way up and down: of git, of a virtual environment, of node's packages."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from sandbox.errors import ConfigError, GuestFileError, HostFileError
from sandbox.vm import VM


def everything(top: Path) -> dict[str, tuple[int, object]]:
    """Return mode and content or target of all that is below a directory."""
    found: dict[str, tuple[int, object]] = {}
    for path in top.rglob("*"):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            what: object = str(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            what = (path.read_bytes(), status.st_mtime_ns)
        else:
            what = None
        found[str(path.relative_to(top))] = (status.st_mode, what)
    return found


async def test_a_git_work_tree_is_the_same_afterwards(vm: VM, tmp_path: Path) -> None:
    """Read-only objects, links in the tree and times that the index has come back; git finds nothing changed."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("this host has no git")
    source, back = tmp_path / "source", tmp_path / "back"
    source.mkdir()
    (source / "a").write_text("a")
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    (source / "link").symlink_to("a")
    identity = ["-c", "user.name=n", "-c", "user.email=e"]

    def run(top: Path, *arguments: str) -> str:
        command = [git, *identity, *arguments]
        return subprocess.run(command, cwd=top, check=True, capture_output=True, text=True).stdout

    for arguments in (["init"], ["add", "."], ["commit", "-m", "m"]):
        run(source, *arguments)
    assert not (await vm.upload(source, "repo")).skipped
    if (await vm.exec("command -v git")).ok:
        in_guest = await vm.exec("git status --porcelain", cwd="/workspace/repo", env={"GIT_OPTIONAL_LOCKS": "0"})
        assert (in_guest.exit_code, in_guest.text) == (0, ""), in_guest.stderr
    down = await vm.download("repo", back)
    assert (down.skipped, down.errors) == ({}, {})
    assert everything(back) == everything(source)
    assert run(back, "status", "--porcelain") == ""
    assert run(back, "fsck") == ""


async def test_a_virtual_environment_works_in_the_guest(vm: VM, tmp_path: Path) -> None:
    """Its links to the system's Python go up as they are; on the way back they are left out by name, the rest stays."""
    version = (await vm.run("import sys; print('%d.%d' % sys.version_info[:2])")).text.strip()
    source, back = tmp_path / "venv", tmp_path / "back"
    packages = source / "lib" / f"python{version}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "ours.py").write_text("x = 42\n")
    (source / "bin").mkdir()
    (source / "bin/python3").symlink_to("/usr/bin/python3")
    (source / "bin/python").symlink_to("python3")
    (source / "lib64").symlink_to("lib")
    (source / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n")
    up = await vm.upload(source, "venv", exclude=["*.pyc", "__pycache__"])
    assert (up.links, up.skipped, up.errors) == (3, {}, {})
    ran = await vm.exec(["venv/bin/python", "-c", "import ours, sys; print(sys.prefix, ours.x)"])
    assert ran.text == "/workspace/venv 42\n", ran.stderr
    await vm.files.remove(f"venv/lib/python{version}/site-packages/__pycache__", recursive=True)
    down = await vm.download("venv", back)
    assert set(down.skipped) == {"bin/python3"}
    expected = everything(source)
    del expected["bin/python3"]
    assert everything(back) == expected


async def test_programs_of_node_packages_keep_their_links(vm: VM, tmp_path: Path) -> None:
    """Relative links between packages come back as they are, wherever in the tree they are."""
    source, back = tmp_path / "source", tmp_path / "back"
    (source / "node_modules/.bin").mkdir(parents=True)
    (source / "node_modules/tool/bin").mkdir(parents=True)
    (source / "node_modules/tool/bin/run").write_text("#!/bin/sh\necho ran\n")
    (source / "node_modules/tool/bin/run").chmod(0o755)
    (source / "node_modules/.bin/tool").symlink_to("../tool/bin/run")
    (source / "node_modules/@scope").mkdir()
    (source / "node_modules/@scope/tool").symlink_to("../tool", target_is_directory=True)
    (source / "again").hardlink_to(source / "node_modules/tool/bin/run")
    await vm.upload(source, "project")
    assert (await vm.exec("node_modules/.bin/tool; node_modules/@scope/tool/bin/run", cwd="/workspace/project")).ok
    assert (await vm.download("project", back)).skipped == {}
    assert everything(back) == everything(source)


async def test_links_are_kept_followed_or_skipped(vm: VM, tmp_path: Path) -> None:
    """As the caller says; circles and links that lead nowhere are named when they are followed."""
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/a").write_text("a")
    (source / "file").symlink_to("d/a")
    (source / "directory").symlink_to("d")
    (source / "d/round").symlink_to("..")
    (source / "nowhere").symlink_to("none")
    kept = await vm.upload(source, "kept")
    assert (kept.files, kept.directories, kept.links) == (1, 1, 4)
    skipped = await vm.upload(source, "skipped", links="skip")
    assert set(skipped.skipped) == {"file", "directory", "d/round", "nowhere"}
    followed = await vm.upload(source, "followed", links="follow")
    assert (followed.files, followed.directories, followed.links) == (3, 2, 0)
    assert set(followed.errors) == {"d/round", "directory/round", "nowhere"}
    assert await vm.files.read("followed/directory/a") == b"a"
    with pytest.raises(HostFileError, match=r"source/.* cannot be read"):
        await vm.upload(source, "strict", links="follow", strict=True)
    down = await vm.download("kept", tmp_path / "none", links="skip")
    assert (down.links, len(down.skipped)) == (0, 4)
    with pytest.raises(ConfigError):
        await vm.upload(source, "x", exclude="d")
    without = await vm.upload(source, "without", exclude=["d", "nowh*"], overwrite=False)
    assert (without.directories, without.links) == (0, 2)


async def test_what_is_in_the_way_in_the_guest_is_named(vm: VM, tmp_path: Path) -> None:
    """Files and links give way and are not followed; directories and places without permission stay, by name."""
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for name in ("file", "link", "full", "d/a", "closed"):
        (source / name).write_text("new")
    (source / "large").write_bytes(os.urandom(300_000))
    await vm.exec(
        "mkdir -p t/full t/away; cd t; echo old > ../secret; ln -s ../secret link; ln -s away d; ln ../secret file"
    )
    report = await vm.upload(source, "t")
    assert set(report.errors) == {"full", "d", "d/a"}
    assert (report.files, report.bytes) == (4, 9 + 300_000)
    assert (await vm.exec("cat secret; cat t/link; ls t/away")).text == "old\nnew"
    with pytest.raises(GuestFileError, match="File exists: 't/full'"):
        await vm.upload(source, "t", strict=True, exclude=["d"])
    with pytest.raises(GuestFileError) as refusal:
        await vm.upload(source, "/etc/new")
    assert refusal.value.filename == "/etc/new"
    assert (await vm.upload(source, "again")).errors == {}, "the next call works"


async def test_a_full_disk_in_the_guest_ends_an_upload(vm: VM, tmp_path: Path) -> None:
    """It is refused at once, whether a small or a large file is the one too many; no part of that one is left."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(bytes(40 << 20))
    mount = "import ctypes, os; os.mkdir('/mnt/small')\n"
    mount += "assert not ctypes.CDLL(None).mount(b'tmpfs', b'/mnt/small', b'tmpfs', 0, b'size=1m')"
    (await vm.run(mount, user="root")).check()
    for _ in range(2):
        with pytest.raises(GuestFileError, match="No space left on device: '/mnt/small/t/large'") as full:
            await vm.upload(source, "/mnt/small/t", user="root")
        assert full.value.errno == errno.ENOSPC
        assert await vm.files.list("/mnt/small/t") == []
    (source / "large").unlink()
    for number in range(100):
        (source / f"{number}").write_bytes(bytes(20_000))
    with pytest.raises(GuestFileError, match="No space left"):
        await vm.upload(source, "/mnt/small/t", user="root")
    assert (await vm.upload(source, "elsewhere", user="root")).files == 100


async def test_many_small_files_are_few_messages(vm: VM, tmp_path: Path) -> None:
    """A thousand files go up and come down with the contents that they had."""
    source = tmp_path / "source"
    for directory in range(10):
        (source / str(directory)).mkdir(parents=True)
        for number in range(100):
            (source / f"{directory}/{number}").write_bytes(os.urandom(1024))
    (source / "empty").write_bytes(b"")
    for number, size in enumerate((32 * 1024, 32 * 1024 + 1, 128 * 1024, 1_000_000)):
        (source / f"size{number}").write_bytes(os.urandom(size))
    up = await vm.upload(source, "many")
    down = await vm.download("many", tmp_path / "back")
    assert (up.files, down.files, up.bytes) == (1005, 1005, down.bytes)
    assert everything(tmp_path / "back") == everything(source)
    kernel = await vm.download("/proc/sys/kernel/random", tmp_path / "kernel", user="root")
    assert kernel.files >= 3, "files of the kernel's have content, and no size"
    assert len((tmp_path / "kernel/boot_id").read_text()) == 37
