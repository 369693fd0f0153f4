"""`sandbox trace` with real VMs: what it shows really happened, and adds up."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import run_sync

from sandbox.cold_boot import ColdBoot
from sandbox.config import HostConfig
from sandbox.errors import StartError
from sandbox.hypervisor.domain_xml import command_line
from sandbox.image.initramfs import cpio, file
from sandbox.image.store import Image, ImageStore
from sandbox.template.template import Template
from sandbox.trace.boot import STAGES
from sandbox.trace.recorder import recording

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


GUEST_STAGES = ["firmware", "kernel", *STAGES.values()]


def boot_image(name: str) -> str:
    """Return the image, or skip where it was not built."""
    if name != "default" and name not in ImageStore(HostConfig().paths.images).names():
        pytest.skip(f"there is no image {name} here")
    return name


@pytest.mark.parametrize("image", ["default", "default-minimal-kernel"])
def test_boot_is_traced_from_firmware_to_agent(tmp_path: Path, image: str) -> None:
    """Stages of host, QEMU and guest are there; the guest's follow one another, lie in the boot and account for it."""
    options = ("--json", "t.json", "--html", "t.html", "--shortest", "0")
    done = sandbox("trace", "boot", "--image", boot_image(image), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = complete(tmp_path / "t.json")
    boot, kernel = named(events, "boot"), named(events, "kernel")
    assert contains(named(events, "sandbox boot"), boot)
    assert [event["name"] for event in events if not contains(named(events, "sandbox boot"), event)] == []
    assert contains(boot, named(events, "build the machine"))

    stages = [named(events, name) for name in GUEST_STAGES]
    assert all(contains(boot, event) and event["cat"] == "boot" for event in stages)
    for one, other in pairwise(stages):
        assert one["ts"] + one["dur"] == pytest.approx(other["ts"], abs=ROUNDING)
    ran = boot["ts"] + boot["dur"] - named(events, "let it run")["ts"]
    assert sum(event["dur"] for event in stages) > 0.7 * ran
    lines = [event for event in events if event["cat"] == "boot" and event is not kernel and contains(kernel, event)]
    assert sum(event["dur"] for event in lines) > 0.5 * kernel["dur"]
    assert "Run /init as init process" not in lines[0]["name"]

    first = min((event for event in events if event["name"] == "HELLO, until READY"), key=lambda event: event["ts"])
    wake = min((event for event in events if event["cat"] == "agent"), key=lambda event: event["ts"])
    assert contains(first, wake)
    assert wake["ts"] + ROUNDING >= stages[-1]["ts"] + stages[-1]["dur"]
    assert not any(event["name"].endswith("START") for event in events), "what was done for the trace is in it"
    assert (tmp_path / "t.html").read_text().count("<rect") == len(events)


async def test_boot_that_nobody_traces_is_asked_for_nothing(template: Template) -> None:
    """Its kernel has the same words as ever, and nothing in it tells how far it has come."""
    image = await run_sync(ImageStore(HostConfig().paths.images).find, "default")
    async with ColdBoot(template.host, image).lease() as vm:
        assert (await vm.run("print(open('/proc/cmdline').read(), end='')")).text == (
            f"{command_line(template.host.platform.accelerator)}\n"
        )
        log = (await vm.exec("dmesg", user="root")).text
        assert "sandbox-boot" not in log
        assert "SANDBOX" not in log


@pytest.fixture
def agentless() -> Iterator[tuple[Image, Path]]:
    """The default image, and an initramfs of it whose agent ends before it has begun."""
    image = ImageStore(HostConfig().paths.images).find("default")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        initrd = Path(directory) / "initrd"
        # Of two files with one name the kernel keeps the latter.
        start = file("agent/start.py", b"from told import told\ntold('python')\nraise SystemExit")
        initrd.write_bytes(image.initrd.read_bytes() + cpio([start]))
        initrd.chmod(0o644)
        yield image, initrd


async def test_boot_that_fails_leaves_a_trace_of_how_far_it_came(
    template: Template, agentless: tuple[Image, Path]
) -> None:
    """The stages until Python's start are there, and the boot has an end."""
    image, initrd = agentless
    source = ColdBoot(template.host, image)
    source.spec = replace(source.spec, initrd=initrd)
    with recording() as trace, pytest.raises(StartError):
        async with source.lease():
            pass
    names = [span.name for span in trace.spans()]
    assert {"boot", "firmware", *list(STAGES.values())[:4]} <= set(names)
    assert not {"kernel", "the agent starts"} & set(names)


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
    """A program has its stages in the guest whatever it is; those of a Python child only where there was one."""
    shell = sandbox("trace", "exec", "--language", "bash", "--json", "a.json", "-c", "exit 4", cwd=tmp_path)
    assert shell.returncode == 4
    stages = [event["name"] for event in complete(tmp_path / "a.json")]
    assert "run, until it is reaped" in stages
    assert "load the program" not in stages
    terminal = sandbox("trace", "exec", "--pty", "--json", "b.json", "-c", "exit(5)", cwd=tmp_path)
    assert terminal.returncode == 5
    names = [event["name"] for event in complete(tmp_path / "b.json")]
    assert "forward the rest, tell the end" in names
    assert "load the program" in names


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
        (("boot", "--html", "no/t.html"), 125, "there is no directory"),
        (("boot", "--memory", "much"), 125, "is not a size"),
        (("sleep",), 2, "No such command"),
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


def test_image_that_does_not_exist_is_told(tmp_path: Path) -> None:
    """In the words of other commands."""
    done = sandbox("trace", "boot", "--image", "missing", cwd=tmp_path)
    assert done.returncode == 125
    assert b"there is no recipe and no built image 'missing'" in done.stderr


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
