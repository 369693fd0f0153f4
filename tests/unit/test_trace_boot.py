"""A boot from what it has said: stages in order, lines of the kernel's log within them, whatever the guest says."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.trace.boot import STAGES, Boot
from sandbox.trace.heard import KEPT_BYTES, Heard
from sandbox.trace.kernel_log import LogLine, log_lines
from sandbox.trace.recorder import recording
from sandbox.trace.span import Span, tree

FIRMWARE = b"\x1bc\x1b[?7lSeaBIOS (version 1.16.3)\r\n\r\nBooting from ROM.."
RECORDS = """\
5,0,0,-;Linux version 6.12
6,5,400000,-;ACPI: \\x5c_SB_: a long gap
 SUBSYSTEM=acpi
6,6,400100,-;at once
no record
6,7,99999999999999999999,-;no time
6,8,900000,c;a line \\x1b[31m
6,9,1000000,-;Run /init as init process
11,10,1100000,-;sandbox-boot: init
11,12,1500000,-;sandbox-boot: modules
5,11,1300000,-;virtio_blk virtio0
"""
WORDS = [b"Booting from ROM..", *(f"sandbox-boot: {word}\n".encode() for word in STAGES)]


def _boot(heard: list[tuple[float, bytes]], log: str = "") -> Boot:
    """Return a boot that has said this, at these times."""
    boot = Boot("vm", 0.0)
    for at, data in heard:
        boot.heard.take(data, at)
    boot.log = log_lines(log)
    return boot


def test_words_have_the_time_at_which_their_last_byte_came() -> None:
    """Be they cut into pieces or not; what was not said has no time, and what comes twice has its first."""
    heard = Heard()
    for at, data in enumerate([b"x sandbox-", b"boot: init", b"\nsandbox-boot: init\n"]):
        heard.take(data, float(at))
    assert heard.when(b"sandbox-boot: init") == 1.0
    assert heard.when(b"sandbox-boot: init\n") == 2.0
    assert heard.when(b"sandbox-boot: root") is None


def test_guest_that_floods_its_console_is_recorded_up_to_a_bound() -> None:
    """What comes later is dropped, and what was said before is still known."""
    heard = Heard()
    heard.take(b"first", 1.0)
    for _ in range(3):
        heard.take(b"x" * KEPT_BYTES, 2.0)
    heard.take(b"last", 3.0)
    assert (heard.when(b"first"), heard.when(b"last")) == (1.0, None)
    assert heard.size == KEPT_BYTES


def test_log_is_read_record_by_record() -> None:
    """In order of time, with escapes undone; fields of devices and what is no record are left out."""
    lines = log_lines(RECORDS)
    assert [line.at for line in lines] == [0.0, 0.4, 0.4001, 0.9, 1.0, 1.1, 1.3, 1.5]
    assert lines[1].text == "ACPI: \\_SB_: a long gap"
    assert log_lines("") == []


def test_stages_end_when_they_were_told_and_lines_when_they_were_logged() -> None:
    """The clocks differ by what was heard soonest; a line ends what took long before it."""
    boot = _boot([(10.5, FIRMWARE), (12.1, b"sandbox-boot: init\r\n"), (12.6, b"sandbox-boot: modules\r\n")], RECORDS)
    spans = {span.name: (round(span.begin, 6), round(span.end, 6)) for span in boot.spans(10.0)}
    assert spans == {
        "firmware": (10.0, 10.5),
        "kernel": (10.5, 12.0),
        "until its clock runs": (10.5, 11.0),
        "ACPI: \\_SB_: a long gap": (11.0, 11.4),
        "a line \\x1b[31m": (11.4001, 11.9),
        "Run /init as init process": (11.9, 12.0),
        "mount proc, sys and dev": (12.0, 12.1),
        "load the modules": (12.1, 12.5),
        "virtio_blk virtio0": (12.1, 12.3),
    }
    (root,) = tree([Span("boot", 9.0, 13.0), *boot.spans(10.0)])
    assert [len(node.children) for node in root.children] == [0, 4, 0, 1]


def test_boot_that_stopped_half_way_has_the_stages_that_it_told() -> None:
    """Without a log they are as the host heard them; a boot that said nothing has none."""
    boot = _boot([(1.0, FIRMWARE), (3.0, b"sandbox-boot: init\n")])
    assert [(span.name, span.begin, span.end) for span in boot.spans(0.5)] == [
        ("firmware", 0.5, 1.0),
        ("mount proc, sys and dev", 1.0, 3.0),
    ]
    assert _boot([]).spans(0.0) == []


@given(
    st.lists(st.tuples(st.floats(0, 10), st.sampled_from(WORDS)), max_size=10),
    st.lists(st.tuples(st.floats(0, 1e9), st.sampled_from([*WORDS, b"Run /init as init process", b"x"])), max_size=10),
)
def test_whatever_a_guest_says_its_stages_follow_one_another(
    said: list[tuple[float, bytes]], logged: list[tuple[float, bytes]]
) -> None:
    """A guest that lies can shift its own stages, but they stay in order and lines in their stage."""
    boot = _boot(sorted(said))
    boot.log = sorted(LogLine(at, text.decode().strip()) for at, text in logged)
    spans = boot.spans(0.0)
    names = {"firmware", "kernel", *STAGES.values()}
    stages = [span for span in spans if span.name in names]
    assert all(one.end == other.begin for one, other in pairwise(stages))
    assert all(0.0 <= span.begin <= span.end for span in spans)
    for span in spans:
        assert any(stage.contains(span) for stage in stages)
    assert all(span.end <= 10.0 for span in stages)


def test_question_to_a_machine_that_boots_waits_for_its_agent() -> None:
    """The agent's first stage begins when the agent was there, and not when the host asked; those of others do not."""
    with recording() as trace:
        begun = time.monotonic()
        boot = trace.add_boot("vm")
        boot.heard.take(b"sandbox-boot: agent\n", begun + 5.0)
        for name in ("vm", "other"):
            trace.add_exchange((name, 1), begun + 1.0, begun + 6.0, [("wake", 100.0), ("answer", 100.5)])
    spans = [span for span in trace.spans() if span.track == "agent"]
    assert [span.name for span in spans] == ["wake", "answer", "wake", "answer"]
    assert [span.begin - begun for span in spans] == pytest.approx([5.0, 5.5, 1.0, 5.5])
