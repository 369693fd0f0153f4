"""The audit log: a line for each event, no secret and no control character in it, whatever the disk does."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ConfigError
from sandbox.event import EventKind, LifeEvent
from sandbox.observe.audit_line import audit_line
from sandbox.observe.audit_log import AuditLog
from tests.untraced import UNTRACED

_SECRET = "canary-4f1d"


def event(number: int = 0, **fields: object) -> LifeEvent:
    return LifeEvent(EventKind.LEASE_ENDED, "pool", "default", "vm", f"vm.{number}", seconds=1.5, fields=fields)


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_is_one_line_in_order_and_closing_drains(tmp_path: Path) -> None:
    """What was told before the end is in the file at the end, in order, and only its owner can read it."""
    path = tmp_path / "audit.jsonl"
    before = os.umask(0)
    try:
        with AuditLog(path) as audit:
            for number in range(5000):
                audit(event(number, why="released"))
    finally:
        os.umask(before)
    lines = read(path)
    assert [line["lease"] for line in lines] == [f"vm.{number}" for number in range(5000)]
    assert lines[0] | {"at": ""} == {
        "at": "",
        "kind": "lease_ended",
        "pool": "pool",
        "template": "default",
        "vm": "vm",
        "lease": "vm.0",
        "seconds": 1.5,
        "why": "released",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@given(st.text(), st.text())
def test_no_line_holds_a_control_character(name: str, value: str) -> None:
    """Whatever an event holds, its line is one line of printable ASCII that parses to what was told."""
    line = audit_line(LifeEvent(EventKind.EXECUTION_ENDED, "p", execution=name, fields={"error": value, "op": "\x7f"}))
    assert line.endswith("\n")
    assert all(" " <= character <= "~" for character in line[:-1])
    told = json.loads(line)
    assert told.get("execution", "") == (name if len(name) <= 500 else name[:500] + "…")
    assert told["op"] == "\x7f"


def test_only_what_is_known_to_be_harmless_is_written(tmp_path: Path) -> None:
    """A field that the log does not know stays out, and so do what is nested in one and what is long."""

    @dataclass
    class Receipt:
        machine_id: str = "m"
        secret: str = _SECRET

    unknown: dict[str, Any] = {
        "argv": [_SECRET],
        "env": {"K": _SECRET},
        "code_text": _SECRET,
        "output": _SECRET,
        "receipt": Receipt(),
    }
    line = audit_line(event(why="released", error="x" * 600 + _SECRET, **unknown))
    assert _SECRET not in line
    assert json.loads(line)["receipt"] == {"machine_id": "m"}
    assert _SECRET in audit_line(event(why=_SECRET)), "the check is one that can fail"


def test_rotation_keeps_so_many_files_of_so_many_bytes(tmp_path: Path) -> None:
    """No file exceeds its size, no line is divided, the newest are kept, and a restart goes on in the same file."""
    path = tmp_path / "audit.jsonl"
    for part in range(2):
        with AuditLog(path, max_bytes=2000, keep=3) as audit:
            for number in range(part * 50, part * 50 + 50):
                audit(event(number))
    files = [Path(f"{path}.3"), Path(f"{path}.2"), Path(f"{path}.1"), path]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(0 < file.stat().st_size <= 2000 and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    leases = [line["lease"] for file in files for line in read(file)]
    assert leases == [f"vm.{number}" for number in range(100 - len(leases), 100)]
    assert len(leases) > 40


def test_half_a_line_of_a_crash_spoils_no_other(tmp_path: Path) -> None:
    """A file that ends in the midst of a line goes on with a line of its own."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"at": "20')
    with AuditLog(path) as audit:
        audit(event(7))
    broken, whole = path.read_text().splitlines()
    assert broken == '{"at": "20'
    assert json.loads(whole)["lease"] == "vm.7"


def test_what_cannot_be_a_log_is_refused_at_once(tmp_path: Path) -> None:
    """A link, a pipe, a missing directory and a file that another log writes to are errors of the caller."""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "missing/audit.jsonl"):
        with pytest.raises(ConfigError, match="cannot be opened"):
            AuditLog(tmp_path / name)
    assert not (tmp_path / "target").exists()
    with AuditLog(tmp_path / "log"), pytest.raises(ConfigError, match="another log"):
        AuditLog(tmp_path / "log")
    with AuditLog(tmp_path / "log") as audit:
        pass
    with pytest.raises(ConfigError, match="closed before the pool"):
        audit(event())


def test_full_queue_never_blocks_and_the_gap_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk hangs, events are taken without waiting; those beyond the queue are counted in their place."""
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path, max_queued=10)
    hangs, goes_on = threading.Event(), threading.Event()
    write = audit._file.write

    def hang(line: bytes) -> None:
        hangs.set()
        assert goes_on.wait(30)
        write(line)

    monkeypatch.setattr(audit._file, "write", hang)
    audit(event(0))
    assert hangs.wait(10)
    began = time.monotonic()
    for number in range(1, 101):
        audit(event(number))
    assert time.monotonic() - began < 1
    goes_on.set()
    audit.close()
    lines = read(path)
    assert [line["lease"] for line in lines[:-1]] == [f"vm.{number}" for number in range(11)]
    assert (lines[-1]["kind"], lines[-1]["missing"]) == ("audit_gap", {"lease_ended": 90})


_FULL = """
import logging, resource, sys, threading
from sandbox.event import EventKind, LifeEvent
from sandbox.observe.audit_log import AuditLog
logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
told = threading.Event()
logging.getLogger("sandbox").addFilter(lambda record: told.set() or True)
path, limit, grows = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "grows"
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
audit = AuditLog(path)
for number in range(20):
    audit(LifeEvent(EventKind.LEASE_ENDED, "pool", lease=f"vm.{number}"))
assert limit < 0 or told.wait(20)
if grows:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
audit.close()
"""


def fill(path: Path, limit: int, *, grows: bool) -> tuple[list[object], str]:
    """Write 20 lines where a file can have so many bytes, later more if it grows; return them and what was said."""
    arguments = [str(path), str(limit), "grows" if grows else "stays"]
    command = [sys.executable, "-W", "error", "-c", _FULL, *arguments]
    done = subprocess.run(command, env=UNTRACED, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [line["lease"] for line in read(path)], done.stderr


def test_full_disk_is_survived_and_told(tmp_path: Path) -> None:
    """No half line is left, the library's log says it once and how many lines are missing in the end."""
    leases, said = fill(tmp_path / "audit.jsonl", 1000, grows=False)
    assert leases == [f"vm.{number}" for number in range(len(leases))]
    assert 0 < len(leases) < 20
    assert said.count("audit_log_cannot_write") == 1
    assert "audit_log_incomplete" in said
    assert f"lines={20 - len(leases)}" in said


def test_nothing_is_missing_once_the_disk_has_room(tmp_path: Path) -> None:
    """Lines that could not be written wait, and are written, each once, when there is room again."""
    leases, said = fill(tmp_path / "audit.jsonl", 1000, grows=True)
    assert leases == [f"vm.{number}" for number in range(20)]
    assert said.count("audit_log_cannot_write") == said.count("audit_log_writes_again") == 1


def test_disk_with_room_gives_no_warning(tmp_path: Path) -> None:
    """The checks above are ones that can fail: without a limit all is written and nothing said."""
    assert fill(tmp_path / "audit.jsonl", -1, grows=False) == ([f"vm.{number}" for number in range(20)], "")
