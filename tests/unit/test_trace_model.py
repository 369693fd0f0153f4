"""The model of a trace: spans nest, guest stamps find their place, and every picture shows what was recorded."""

from __future__ import annotations

import asyncio
import json
import time
import xml.etree.ElementTree as ET
from itertools import pairwise

import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sandbox.guest.ending import End
from sandbox.trace.event_json import event_json
from sandbox.trace.exchange import Exchange, GuestStage, placed
from sandbox.trace.picture import html, svg
from sandbox.trace.qemu_log import qemu_spans
from sandbox.trace.recorder import recording
from sandbox.trace.row import Row, rows
from sandbox.trace.span import TRACKS, Node, Span, tree
from sandbox.trace.stage import recorder, stage
from sandbox.trace.waterfall import waterfall
from sandbox.wire import decode_json

_TIMES = st.floats(0, 100, allow_nan=False)
_SPANS = st.lists(
    st.builds(
        lambda begin, length, track: Span("s", begin, begin + length, track), _TIMES, _TIMES, st.sampled_from(TRACKS)
    ),
    max_size=12,
)
SPANS = [
    Span("whole", 1.0, 2.0),
    Span("first", 1.0, 1.5),
    Span("second <b>", 1.5, 2.0),
    Span("boots", 1.1, 1.3, "qemu"),
    Span("query-block", 1.2, 1.2001, "monitor"),
    Span("cont", 1.4, 1.4001, "monitor"),
    Span("runs", 1.6, 1.9, "program"),
]
LOG = """\
7@1000.010000:qio_channel_socket_connect_complete Socket connect complete ioc=0x1 fd=3
7@1000.012000:find_ram_offset size: 0x10000000 @ 0x10000000
not of a trace
8@1000.020000:qmp_enter_qmp_capabilities {}
8@1000.020500:qmp_exit_qmp_capabilities {} 1
7@1000.030000:migrate_set_state new state setup
7@1000.031000:migrate_set_state new state active
7@1000.035000:migrate_set_state new state completed
8@1000.040000:qmp_enter_cont {}
"""


def _all(nodes: list[Node]) -> list[Span]:
    return [span for node in nodes for _, span in node.walk()]


def _has_room(node: Node) -> bool:
    return all(node.span.contains(child.span) and _has_room(child) for child in node.children)


@given(_SPANS)
def test_tree_holds_every_span_once_and_each_within_its_parent(spans: list[Span]) -> None:
    """Nothing is lost or doubled, and the host's own spans lie in no others."""
    roots = tree(spans)
    key = lambda span: (span.begin, span.end, span.track)  # noqa: E731
    assert sorted(_all(roots), key=key) == sorted(spans, key=key)
    for node in roots:
        assert _has_room(node)
    for root in roots:
        for parent in [root, *root.children]:
            if parent.span.track != "host":
                assert all(child.span.track == parent.span.track for child in parent.children)


def test_tree_prefers_the_shortest_span_around() -> None:
    """A span of QEMU or of the guest lies in its own track first, and else in the closest span of the host."""
    (root,) = tree(SPANS)
    assert [child.span.name for child in root.children] == ["first", "second <b>"]
    assert [child.span.name for child in root.children[0].children] == ["boots", "query-block", "cont"]
    assert [child.span.name for child in root.children[1].children] == ["runs"]


@given(
    st.lists(
        st.tuples(_TIMES, _TIMES, st.lists(st.floats(-1e12, 1e12, allow_nan=False), min_size=1, max_size=4)),
        max_size=4,
    )
)
def test_whatever_the_guest_stamps_lies_between_question_and_answer(
    said: list[tuple[float, float, list[float]]],
) -> None:
    """A guest that lies about its clock can shift its own stages, and no further than its exchange reaches."""
    for sent, length, stamps in said:
        exchange = Exchange(sent, sent + length, tuple(GuestStage("s", stamp) for stamp in stamps))
        spans = placed([exchange, Exchange(0.0, 200.0, (GuestStage("t", 5.0),))])
        assert all(sent <= span.begin <= span.end <= sent + length for span in spans[:-1])
        assert all(one.end <= other.begin for one, other in pairwise(spans[:-1]))


def test_guest_stages_are_placed_by_the_fastest_answer_of_the_same_clock() -> None:
    """Clocks differ by what the fastest answer shows; another setting of the guest's clock does not count."""
    slow = Exchange(10.0, 12.0, (GuestStage("a", 1010.5), GuestStage("b", 1011.5)), era=("vm", 1))
    fast = Exchange(20.0, 21.0, (GuestStage("c", 1020.75),), era=("vm", 1))
    other = Exchange(1.0, 2.0, (GuestStage("d", 5.0),), era=("vm", 2))
    spans = {span.name: (span.begin, span.end) for span in placed([slow, fast, other])}
    assert spans == {"a": (10.0, 10.75), "b": (10.75, 11.75), "c": (20.0, 21.0), "d": (1.0, 2.0)}


def test_qemu_log_becomes_spans_on_the_monotonic_clock() -> None:
    """Start, memory, machine, commands and device state have their times; a command without an end is left out."""
    spans = {span.name: span for span in qemu_spans(LOG, forked=999.99, wall_offset=900.0)}
    lengths = {name: round(span.seconds * 1000, 3) for name, span in spans.items()}
    assert lengths == {
        "QEMU's process starts": 20.0,
        "map the memory": 2.0,
        "build the machine": 8.0,
        "qmp-capabilities": 0.5,
        "load the device state": 5.0,
    }
    assert spans["map the memory"].begin == pytest.approx(100.01)
    assert qemu_spans("", forked=1.0, wall_offset=0.0) == []


def test_events_load_and_nest_on_each_thread() -> None:
    """The JSON has complete events in microseconds, and a name for each process and thread that they are of."""
    document = json.loads(json.dumps(event_json(SPANS, {"cores": 2})))
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    named = {(event["pid"], event["tid"]) for event in document["traceEvents"] if event["name"] == "thread_name"}
    assert len(events) == len(SPANS)
    assert {(event["pid"], event["tid"]) for event in events} == named
    assert (events[0]["name"], events[0]["ts"], events[0]["dur"]) == ("whole", 0.0, pytest.approx(1e6))
    assert document["otherData"] == {"cores": 2}


def test_short_spans_of_one_track_share_a_line() -> None:
    """Two short commands become one line with both bars; a threshold of nothing shows each."""
    names = [(row.depth, row.name) for row in rows(SPANS, 0.001)]
    assert names == [
        (0, "whole"),
        (1, "first"),
        (2, "boots"),
        (2, "2 commands of the monitor"),
        (1, "second <b>"),
        (2, "runs"),
    ]
    assert len(rows(SPANS, 0.0)) == len(SPANS)
    shared = rows(SPANS, 0.001)[3]
    assert shared.seconds == pytest.approx(0.0002)
    assert len(shared.spans) == 2


def _picture(shown: list[Row], width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(waterfall(shown, width, block="#", sliver="|"))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_waterfall_draws_each_bar_at_its_place() -> None:
    """Begin and length are printed in ms, bars lie below each other on one scale, and no line is too wide."""
    lines = _picture(rows(SPANS, 0.001), 100)
    head, whole, first, _, shared, second, _ = lines
    assert "0 to 1000.00 ms" in head
    assert max(map(len, lines)) <= 100
    start = whole.index("#")
    assert second.index("#") == first.rindex("#") + 1
    assert whole.count("#") == first.count("#") + second.count("#")
    assert first.index("#") == start
    assert shared.count("|") == 2
    assert first.split("#")[0].split() == ["host", "first", "0.00", "500.00"]


def test_waterfall_of_nothing_is_a_head_line() -> None:
    """A trace that holds nothing, because everything failed at once, can still be drawn."""
    assert len(_picture([], 80)) == 1


def test_page_is_whole_and_says_names_as_text() -> None:
    """The drawing is well-formed, has a bar for each span, and a name is never markup."""
    drawing = svg(rows(SPANS, 0.001))
    assert len(ET.fromstring(drawing).findall(".//{*}rect")) == len(SPANS)
    page = html("trace", rows(SPANS, 0.001), {"machine": "<i>"})
    assert drawing in page
    assert "second &lt;b&gt;" in page
    assert "<i>" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_names_of_a_drawing_end_before_their_lengths() -> None:
    """A long name, of however deep a stage, is cut; the whole of it can be read when it is pointed at."""
    spans = [Span("a name that fits", 0.0, 20.0), *(Span("x" * 200, 0.0, 9.0 - depth) for depth in range(8))]
    drawing = ET.fromstring(svg(rows(spans, 0.0)))
    names = [text for text in drawing.findall(".//{*}text") if text.find("{*}title") is not None]
    assert names[0].text == "a name that fits"
    for name in names[1:]:
        assert name.text is not None
        assert name.text.endswith("x…")
        assert float(name.attrib["x"]) + 7 * len(name.text) <= 460 - 24 - 60
        assert name.findtext("{*}title") == "x" * 200


@pytest.mark.parametrize("length", [1e-6, 0.0123, 0.99, 1.0, 3.958, 120.0])
def test_scale_of_a_drawing_has_round_marks(length: float) -> None:
    """A few of them from 0 on, at equal distances, none beyond the last stage's end."""
    drawing = ET.fromstring(svg(rows([Span("s", 5.0, 5.0 + length)], 0.0)))
    marks = [float(text.text or "") for text in drawing.findall(".//{*}text[@class='scale']")]
    assert marks[0] == 0.0
    assert 5 <= len(marks) <= 11
    assert marks[-1] <= length * 1000 * 1.001
    assert str(marks[1]).strip("0.e-")[0] in "125"


async def test_stages_are_recorded_only_in_the_context_of_a_trace() -> None:
    """Worker threads and tasks that are started within it belong to it; nothing before, after or beside it does."""
    begun, over = asyncio.Event(), asyncio.Event()

    def blocking() -> None:
        with stage("in a thread"):
            pass

    async def task(name: str) -> None:
        begun.set()
        await over.wait()
        with stage(name):
            pass

    with stage("before"):
        beside = asyncio.create_task(task("beside"))
    await begun.wait()
    with recording() as trace, stage("whole"):
        await anyio.to_thread.run_sync(blocking)
        within = asyncio.create_task(task("in a task"))
        over.set()
        await within
    await beside
    with stage("after"):
        pass
    assert recorder.get() is None
    assert [span.name for span in trace.spans()] == ["in a thread", "in a task", "whole"]


def test_stage_outside_of_a_trace_costs_next_to_nothing() -> None:
    """A thousand stages that nobody wants take less than a hundredth of a restore."""

    def thousand() -> float:
        begun = time.perf_counter()
        for _ in range(1000):
            with stage("x"):
                pass
        return time.perf_counter() - begun

    assert min(thousand() for _ in range(20)) < 0.0015


@pytest.mark.parametrize(
    "stamps",
    [
        b'{"received": 1, "handed": 1, "dead": 1}',
        b'{"received": -1, "handed": 1, "dead": 1, "told": 1}',
        b'{"received": 1.5, "handed": 1, "dead": 1, "told": 1}',
        b'{"received": 1, "handed": 1, "dead": 1, "told": 18446744073709551616}',
        b'{"received": 1, "handed": 1, "dead": 1, "told": 1, "more": 1}',
    ],
)
def test_stamps_that_no_agent_could_send_are_refused(stamps: bytes) -> None:
    """The guest's stamps are numbers of a known name and range, or the end that bears them is a breach."""
    whole = b'{"received": 1, "handed": 1, "dead": 1, "told": 1}'
    assert End.model_validate(decode_json(_end(whole))).stamps is not None
    with pytest.raises(ValueError, match="stamps"):
        End.model_validate(decode_json(_end(stamps)))


def _end(stamps: bytes) -> bytes:
    return b'{"code": 0, "signal": null, "cpu_us": 1, "stamps": ' + stamps + b"}"
