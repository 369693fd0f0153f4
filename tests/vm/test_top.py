"""`sandbox top`: VMs with what their pools tell, at a terminal and without one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sandbox.cli.top import PoolRow, View, VMRow, tables
from sandbox.config import HostConfig
from sandbox.observe.status import read_status

SANDBOX = [sys.executable, "-m", "sandbox"]
SECONDS = 30.0
HOLDER = """
import asyncio, sys
from sandbox import PoolConfig, VMPool
async def main():
    async with VMPool(PoolConfig(min_size=1, max_size=2)) as pool:
        lease = await pool.claim()
        await lease.vm.spawn(["sleep", "1000"])
        await pool.wait_ready()
        print(pool.id, lease.vm.name, lease.token, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await lease.release()
        await pool.wait_ready()
        print("released", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""


class Holder:
    """A process with a pool: one VM leased with a program in it, one ready."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pool, self.vm, self.token = self.read().split()
        self.run_directory = HostConfig().runtime_dir / self.vm.split("-")[1]

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def proceed(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture
def holder(template: object) -> Iterator[Holder]:
    holder = Holder()
    yield holder
    holder.end()


def look() -> dict[str, Any]:
    done = subprocess.run([*SANDBOX, "top", "--json"], capture_output=True, text=True, timeout=60, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def look_until(is_so: Any) -> dict[str, Any]:
    """Look until the view is as expected: a pool writes once a second at most."""
    deadline = time.monotonic() + SECONDS
    while not is_so(view := look()):
        assert time.monotonic() < deadline, view
    return view


def test_vms_are_shown_with_what_their_pool_tells(holder: Holder) -> None:
    """Leased and ready VMs, their load, memory, age, owner and programs; a release shows within a second or so."""

    def is_settled(view: dict[str, Any]) -> bool:
        pools = [pool for pool in view["pools"] if pool["pool"] == holder.pool]
        return bool(pools) and pools[0]["statistics"]["leased"] == pools[0]["statistics"]["ready"] == 1

    view = look_until(is_settled)
    mine = {row["vm"]: row for row in view["vms"] if row["owner"] == holder.process.pid}
    assert sorted(row["state"] for row in mine.values()) == ["leased", "ready"]
    leased = mine[holder.vm]
    assert (leased["lease"], leased["template"], leased["running"]) == (holder.token, "default", 1)
    assert leased["memory_mib"] > 1
    assert leased["seconds"] > 0
    assert 0 <= leased["cpu_percent"] < 1000
    assert leased["owner_is_alive"]
    file = holder.run_directory / f"pool-{holder.pool}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    plain = subprocess.run([*SANDBOX, "top"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert holder.vm in plain
    assert holder.pool in plain
    assert "\x1b" not in plain
    holder.proceed()
    assert holder.read() == "released\n"
    look_until(lambda view: holder.vm not in [row["vm"] for row in view["vms"]])
    holder.end()
    assert holder.pool not in [pool["pool"] for pool in look()["pools"]]
    assert not file.exists()


def test_what_another_process_wrote_is_data(tmp_path: Path) -> None:
    """Files that are no such record, of the wrong types, endless, or links are left out, and the good one is read."""
    good = {"pool": "p", "statistics": {"ready": 1}, "vms": {"v": {"state": "ready", "template": "\x1b[31m"}}}
    (tmp_path / "pool-good.json").write_text(json.dumps(good))
    (tmp_path / "pool-link.json").symlink_to(tmp_path / "pool-good.json")
    bad = [b"", b"[]", b"{", b'{"pool": "p"}', b"\xff\xfe", b"[" * 100_000, b'{"pool":1,"statistics":[],"vms":{}}']
    bad += [json.dumps(good | {"statistics": {"ready": "many"}}).encode()]
    bad += [json.dumps(good | {"vms": {"v": {"state": 1, "unknown": 2}}}).encode()]
    bad += [json.dumps(good | {"vms": {"v": {"state": ["ready"]}}}).encode()]
    for number, content in enumerate(bad):
        (tmp_path / f"pool-{number}.json").write_bytes(content)
    os.mkfifo(tmp_path / "pool-pipe.json")
    assert [status.pool for status in read_status(tmp_path)] == ["p"]


def test_no_word_of_another_process_acts_on_the_terminal() -> None:
    """Escape sequences and markup in what a pool's file says are shown, not obeyed."""
    evil = "\x1b]0;title\x07[red]\n\x9b31m"
    row = VMRow("sbx-1", 1, 1, True, evil, 0.0, None, 0.0, lease=evil, template=evil)
    view = View([PoolRow(evil, 1, {"ready": 1})], [row])
    console = Console(width=300, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(tables(view, rows=None))
    shown = capture.get()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
    assert shown.count(r"\x1b]0;title\x07[red]\n\x9b31m") == 3


class Viewer:
    """Looks at `sandbox top` on a terminal of its own, below a shell's place, and presses keys."""

    def __init__(self, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(30, 120)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [*SANDBOX, "top", *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads run here
        )
        self.screen = b""

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def see(self, pattern: bytes) -> bytes:
        """Return what appeared up to and with `pattern`; fail if it does not in time."""
        deadline = time.monotonic() + SECONDS
        while (match := re.search(pattern, self.screen, re.DOTALL)) is None:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not appear; there is {self.screen[-500:]!r}"
            self.screen += os.read(self.master, 65536)
        seen, self.screen = self.screen[: match.end()], self.screen[match.end() :]
        return seen

    def assert_restored(self) -> None:
        """The screen behind it and the cursor are back, and the modes are what they were."""
        self.see(rb"\x1b\[\?25h\x1b\[\?1049l")
        assert termios.tcgetattr(self.slave) == self.before


@contextmanager
def viewing(*arguments: str) -> Iterator[Viewer]:
    viewer = Viewer(*arguments)
    try:
        yield viewer
    finally:
        viewer.process.kill()
        viewer.process.communicate()
        os.close(viewer.master)
        os.close(viewer.slave)


@pytest.mark.parametrize(
    ("end", "status"),
    [(b"q", 0), (b"\x03", 0), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)],
)
def test_terminal_is_restored_however_it_ends(end: bytes | signal.Signals, status: int) -> None:
    """A key, Ctrl-C and signals end it; the terminal is as it was, and nothing is on standard error."""
    with viewing() as viewer:
        viewer.see(rb"\x1b\[\?1049h.*VMs in")
        assert termios.tcgetattr(viewer.slave) != viewer.before
        if isinstance(end, bytes):
            viewer.press(end)
        else:
            viewer.process.send_signal(end)
        viewer.assert_restored()
        assert viewer.process.wait(SECONDS) == status
        assert viewer.process.stderr is not None
        assert viewer.process.stderr.read() == b""


def test_stop_gives_the_terminal_back_meanwhile() -> None:
    """Ctrl-Z stops it with the terminal as it was; when it goes on, it shows again."""
    with viewing("--interval", "1000") as viewer:
        viewer.see(rb"VMs in")
        viewer.press(b"\x1a")
        viewer.assert_restored()
        assert os.WIFSTOPPED(os.waitpid(viewer.process.pid, os.WUNTRACED)[1])
        viewer.process.send_signal(signal.SIGCONT)
        viewer.see(rb"\x1b\[\?1049h.*VMs in")
        viewer.press(b"q")
        viewer.assert_restored()


RACE = """
import ctypes, itertools, operator, os, select, signal, sys, types
from sandbox.cli import screen

def late(*waiting):
    kill = ctypes.CDLL(None).kill
    return list(itertools.starmap(operator.call, [(kill, os.getpid(), signal.SIGWINCH), (wait, *waiting)]))[-1]

wait, drawn = select.select, []
screen.select = types.SimpleNamespace(select=late)
with screen.Screen() as view:
    view.show(lambda rows: drawn.append(rows) or "")
    view.wait_key(5)
sys.exit(len(drawn))
"""
"""Its signal comes when Python does not look for one any more, and before it waits: all of that is one call."""


def test_signal_in_the_last_moment_before_a_wait_is_obeyed() -> None:
    """It does not wait for the next look: a change of size is drawn, and Ctrl-C would end it."""
    master, slave = pty.openpty()
    try:
        done = subprocess.run([sys.executable, "-c", RACE], stdin=slave, stdout=slave, check=False, timeout=SECONDS)
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 2


def test_view_follows_the_terminals_size(holder: Holder) -> None:
    """A change of size is drawn at once, in as many lines and columns as there are, and not only at the next look."""
    with viewing("--interval", "1000") as viewer:
        viewer.see(rb"VMs in.*\x1b\[J")
        viewer.resize(8, 40)
        while True:  # what was drawn before the change may still be on its way; `see` knows when to give up
            drawn = viewer.see(rb"\x1b\[H.*?VMs in.*?\x1b\[J")
            lines = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", drawn).decode().splitlines()
            if len(lines) <= 8 and max(map(len, lines)) <= 40:
                break
        viewer.resize(40, 160)
        viewer.see(rb"\x1b\[H.*VMs in.*" + holder.vm.encode() + rb".*\x1b\[J")
        viewer.press(b"q")
        viewer.assert_restored()
