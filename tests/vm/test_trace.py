"""`sandbox trace` with real VMs: what it shows really happened, and adds up."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("template")
SECONDS = 90
Event = dict[str, Any]
ROUNDING = 0.1
"""Microseconds by which sums of floating-point times may differ."""


def sandbox(*arguments: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "sandbox", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=SECONDS, cwd=cwd, input=stdin)


def complete(path: Path) -> list[Event]:
    """Return the document's complete events."""
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]


def named(events: list[Event], name: str) -> Event:
    """Return the one event with this name."""
    (event,) = [event for event in events if event["name"] == name]
    return event


def within(events: list[Event], outer: Event) -> list[Event]:
    """Return the host's events that lie in this one and in no other one of the host's in it."""
    inner = [event for event in events if event["pid"] == 1 and event is not outer and contains(outer, event)]
    return [event for event in inner if not any(other is not event and contains(other, event) for other in inner)]


def contains(outer: Event, inner: Event) -> bool:
    begins = outer["ts"] <= inner["ts"] + ROUNDING
    return bool(begins and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + ROUNDING)


def share(events: list[Event], name: str) -> float:
    """Return how much of an event those that lie directly in it account for."""
    outer = named(events, name)
    return float(sum(event["dur"] for event in within(events, outer)) / outer["dur"])


def test_execution_is_traced_from_end_to_end(tmp_path: Path) -> None:
    """The script behaves as ever; host, QEMU and guest have stages that nest and add up; files and picture agree."""
    options = ("--json", "t.json", "--html", "t.html", "--shortest", "0")
    # It sleeps so that its stage has a length that is known from below.
    code = "import sys, time; print(sys.stdin.read()); time.sleep(0.2); sys.exit(3)"
    done = sandbox("trace", "exec", *options, "-c", code, cwd=tmp_path, stdin=b"in")
    assert (done.returncode, done.stdout) == (3, b"in\n")
    events = complete(tmp_path / "t.json")
    picture = done.stderr.decode()
    assert [event["name"] for event in events if event["name"][:30] not in picture] == []

    assert {event["cat"] for event in events} == {"host", "qemu", "monitor", "agent", "program"}
    whole = named(events, "sandbox exec")
    assert [event["name"] for event in events if not contains(whole, event)] == []
    for thread in {(event["pid"], event["tid"]) for event in events}:
        mine = [event for event in events if (event["pid"], event["tid"]) == thread]
        for index, event in enumerate(mine):  # in order of their begin
            later = mine[index + 1 :]
            assert all(
                contains(event, other) or other["ts"] + ROUNDING >= event["ts"] + event["dur"] for other in later
            )

    assert 0.9 < share(events, "sandbox exec") <= 1.001
    assert 0.9 < share(events, "restore") <= 1.001
    assert 0.9 < share(events, "execute") <= 1.001
    assert named(events, "run, until it is reaped")["dur"] > 200_000
    assert contains(named(events, "execute"), named(events, "become the user"))
    assert contains(named(events, "libvirt creates the domain"), named(events, "build the machine"))
    assert contains(named(events, "have the state loaded"), named(events, "load the device state"))

    page = (tmp_path / "t.html").read_text()
    drawing = page[page.index("<svg") : page.index("</svg>") + len("</svg>")]
    assert len(ET.fromstring(drawing).findall(".//{*}rect")) == len(events)


def test_restore_is_traced_after_others_that_are_not(tmp_path: Path) -> None:
    """With a warm-up the trace holds one restore, whose first HELLO already tells the right time."""
    done = sandbox("trace", "restore", "--warm-up", "2", "--json", "t.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    events = complete(tmp_path / "t.json")
    restore = named(events, "restore")
    assert share(events, "renew the identity") > 0.9
    assert named(events, "cont")["dur"] < named(events, "let it run")["dur"]
    guest = [event for event in events if event["cat"] == "agent"]
    assert [event["name"] for event in guest][:2] == ["wake, take HELLO and its entropy", "set the names, prove them"]
    hello = [event for event in events if event["name"] == "HELLO, until READY"]
    assert all(any(contains(outer, event) for outer in hello) for event in guest)
    assert contains(named(events, "sandbox restore"), restore)
    facts = json.loads((tmp_path / "t.json").read_text())["otherData"]
    assert {"accelerator", "cores", "qemu", "load_before"} <= set(facts)
    lines = done.stdout.decode().splitlines()
    assert lines[0].split()[:4] == ["where", "stage", "begin", "ms"]
    assert any("load the device state" in line for line in lines)


def test_program_finds_nothing_of_the_trace(tmp_path: Path) -> None:
    """Descriptors and environment of a traced program are those of any other."""
    code = (
        "import os\n"
        "descriptors = [f'/proc/self/fd/{number}' for number in range(20)]\n"
        "print([os.readlink(name)[:4] for name in descriptors if os.path.exists(name)], sorted(os.environ))\n"
    )
    plain = sandbox("exec", "-c", code, cwd=tmp_path)
    traced = sandbox("trace", "exec", "-c", code, cwd=tmp_path)
    assert plain.returncode == traced.returncode == 0
    assert traced.stdout == plain.stdout


def test_program_that_is_no_python_and_one_on_a_terminal_are_traced(tmp_path: Path) -> None:
    """A program has its stages in the guest whatever it is; where no child was made ahead the agent's are left."""
    shell = sandbox("trace", "exec", "--language", "bash", "--json", "a.json", "-c", "exit 4", cwd=tmp_path)
    assert shell.returncode == 4
    assert named(complete(tmp_path / "a.json"), "load the program")
    terminal = sandbox("trace", "exec", "--pty", "--json", "b.json", "-c", "exit(5)", cwd=tmp_path)
    assert terminal.returncode == 5
    names = [event["name"] for event in complete(tmp_path / "b.json")]
    assert "forward the rest, tell the end" in names
    assert "load the program" not in names


def test_failed_execution_leaves_a_trace_of_what_was_done(tmp_path: Path) -> None:
    """A VM that is lost ends as in `exec`, and the picture shows how far it came."""
    code = "open('/proc/sysrq-trigger', 'w').write('o')"
    done = sandbox("trace", "exec", "--user", "root", "--json", "t.json", "-c", code, cwd=tmp_path)
    assert done.returncode == 125
    events = complete(tmp_path / "t.json")
    assert named(events, "restore")
    assert named(events, "execute")
    assert b"execute" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("exec",), 125, "nothing to run"),
        (("exec", "missing.py"), 127, "no such file"),
        (("exec", "--json", "no/t.json", "-c", "1"), 125, "there is no directory"),
        (("exec", "--html", ".", "-c", "1"), 125, "is a directory"),
        (("restore", "--json", "no/t.json"), 125, "there is no directory"),
        (("restore", "--memory", "much"), 125, "is not a size"),
        (("restore", "--warm-up", "-1"), 2, "--warm-up"),
        (("exec", "--shortest", "x", "-c", "1"), 2, "--shortest"),
        (("boot",), 2, "No such command"),
    ],
)
def test_mistakes_are_told_before_a_vm_is_started(
    tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    """Each wrong argument is told in words with its status, and no picture is drawn."""
    done = sandbox("trace", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, b"")
    assert said in done.stderr.decode()
    assert b"restore  " not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A full disk under a trace's file is one line and status 125; the script has run."""
    done = sandbox("trace", "exec", "--json", "/dev/full", "-c", "print(1)", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (125, b"1\n")
    assert done.stderr == b"sandbox: --json /dev/full cannot be written: No space left on device\n"


def test_picture_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A full disk under standard output is one line and status 125."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sandbox", "trace", "restore"],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=SECONDS,
            cwd=tmp_path,
        )
    assert (done.returncode, done.stderr) == (125, b"sandbox: the picture cannot be written: No space left on device\n")
