"""Answers of guests: each kind of request has its bound, and whatever comes costs little memory and no long stall."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import GuestFileError
from sandbox.guest.answers import CELL, FILE, FILES, STATUS, Bound, Decoding
from sandbox.guest.context import Context
from sandbox.guest.files import Files
from sandbox.guest.language import start_request
from sandbox.guest.parse import MOST_DEPTH, Parser
from sandbox.guest.request import Request
from sandbox.guest.server import Server
from sandbox.guest.transfer import download
from sandbox.message import MessageError, Tag, decode_json, encode, encode_header, encode_json
from sandbox.result import Outcome
from tests.fakes.file_guest import FileGuest, data, says, stat_of
from tests.untraced import UNTRACED

ROOT = Path(__file__).parents[2]
SLACK_BYTES = 4 * 1024 * 1024
"""For pages of the interpreter's own, and what the fake guest holds."""
STALL_SECONDS = 0.010
TYPED = {"GuestFileError", "HostFileError", "ProtocolError", "protocol_error", "taken", "exited"}
_TEXT = st.text(st.sampled_from('ab\x00"\\é€\ud83d\udc00\U0001f600'), max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=20,
)


def _measure(operation: str) -> list[tuple[str, str, str, int, float]]:
    """Have it measured in a process of its own, which does nothing else."""
    command = [sys.executable, "-m", "tests.programs.host_hears_answers", operation]
    done = subprocess.run(command, cwd=ROOT, env=UNTRACED, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "operation", ["stat", "exists", "remove", "read", "write", "list", "pack", "watch", "python", "bash", "end"]
)
def test_whatever_is_answered_costs_little(operation: str) -> None:
    """Every operation, every shape of JSON: a typed error or a result, memory within the bound, no long stall."""
    rows = _measure(operation)
    assert len(rows) >= 20
    wrong = [row for row in rows if row[2] not in TYPED or row[3] > SLACK_BYTES]
    slow = {row[:2] for row in rows if row[4] > STALL_SECONDS}
    if slow:  # processor time, which neighbours stretch: what is our doing is slow each time
        slow &= {row[:2] for row in _measure(operation) if row[4] > STALL_SECONDS}
    assert not wrong
    assert not slow


def test_without_the_steps_it_does_cost_much() -> None:
    """The control: the same shapes, decoded in one go, exceed both bounds."""
    rows = _measure("undefended")
    assert any(row[3] > 2 * CELL.memory for row in rows)
    assert any(row[4] > 10 * STALL_SECONDS for row in rows)


async def _watch(files: Files) -> None:
    async with files.watch("w") as changes:
        await anext(changes)


REQUESTS: dict[str, tuple[Bound, Callable[[Files, Path], Awaitable[object]]]] = {
    "stat": (FILE, lambda files, _: files.stat("f")),
    "exists": (FILE, lambda files, _: files.exists("f")),
    "read": (FILE, lambda files, _: files.read("f")),
    "write": (FILE, lambda files, _: files.write("f", b"x")),
    "remove": (FILE, lambda files, _: files.remove("f")),
    "move": (FILE, lambda files, _: files.move("f", "g")),
    "mkdir": (FILE, lambda files, _: files.mkdir("f")),
    "chmod": (FILE, lambda files, _: files.chmod("f", 0o644)),
    "list": (FILES, lambda files, _: files.list("d")),
    "watch": (FILES, lambda files, _: _watch(files)),
    "pack": (FILES, lambda files, target: download(files, "d", target)),
    "python": (CELL, lambda files, _: _run(files, "python")),
    "bash": (STATUS, lambda files, _: _run(files, "bash")),
}


async def _run(files: Files, language: str) -> None:
    context = Context(files.servers._client, language, start_request(language, {}))
    result = await context.run("1")
    assert result.outcome is Outcome.PROTOCOL_ERROR
    raise GuestFileError(5, "as the others")


@pytest.mark.parametrize("name", REQUESTS)
async def test_the_bound_is_enforced_on_the_header(name: str, tmp_path: Path) -> None:
    """A byte more than the request allows is refused before anything of the answer has come."""
    bound, call = REQUESTS[name]

    def script(request: dict[str, Any]) -> list[bytes]:
        if name == "pack" and request["op"] == "stat":
            return [says(stat=stat_of("directory"))]
        return [encode_header(Tag.JSON, bound.bytes + 1)]

    guest = FileGuest(script, is_shell=name == "bash")
    with pytest.raises(GuestFileError) as caught:
        async with asyncio.timeout(10):
            await call(guest.files, tmp_path / "copy")
    assert caught.value.errno == 5
    guest.release()


async def test_a_bound_is_for_one_request() -> None:
    """A server that was lent for a list is not believed more at the next stat."""
    long = encode_json({"stat": stat_of("symlink", target="x" * FILE.bytes)})
    guest = FileGuest(lambda request: [says(entries=[]), says()] if request["op"] == "list" else [long])
    assert await guest.files.list("d") == []
    with pytest.raises(GuestFileError, match="broke its protocol"):
        await guest.files.stat("f")
    guest.release()


@pytest.mark.parametrize("bound", [FILE, FILES, CELL])
async def test_the_largest_answers_are_taken(bound: Bound) -> None:
    """Up to the bound in bytes, an answer arrives as it was meant, however it is decoded."""
    text = "x" * (bound.bytes - 20)
    guest = FileGuest(lambda _: [says(a=text)])
    server = Server(guest.client, Request("files", {}, is_server=True), bound)
    await server.ask({})
    assert await server.receive_json() == {"a": text}
    guest.release()


async def test_a_cancelled_caller_loses_nothing() -> None:
    """A large answer whose receiver is cancelled while it is decoded is there for the next one."""
    fields = {"a": "x" * 3_000_000, "b": list(range(1000))}
    guest = FileGuest(lambda _: [encode_json(fields), says(c=1)])
    server = Server(guest.client, Request("files", {}, is_server=True), CELL)
    await server.ask({})
    while not server._decoder.has_message:
        await anyio.lowlevel.checkpoint()
    for _ in range(5):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await server.receive()
        assert scope.cancelled_caught
    assert await server.receive() == fields
    assert await server.receive() == {"c": 1}
    guest.release()


async def test_no_credit_for_what_waits_behind_an_answer_that_is_decoded() -> None:
    """While one large answer is decoded, the guest may send a window more, and not another large one."""
    guest = FileGuest(lambda _: [encode_json({"a": "x" * 3_000_000})] * 2)
    server = Server(guest.client, Request("files", {}, is_server=True), CELL)
    await server.ask({})
    while not server._decoder.has_message:
        await anyio.lowlevel.checkpoint()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await server.receive()
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    assert server._decoder.held < 600_000
    assert await server.receive() == await server.receive() == {"a": "x" * 3_000_000}
    guest.release()


async def test_messages_of_nothing_are_taken_one_by_one() -> None:
    """The end of content fifty thousand times over is no list of messages, and no answer to a stat."""
    guest = FileGuest(lambda _: [encode(Tag.END) * 50_000, data(b"x"), says(stat=stat_of("file"))])
    with pytest.raises(GuestFileError, match="content came instead"):
        await guest.files.stat("f")
    guest.release()


def _parsed(body: bytes, most_values: int = 10**6, most_text: int = 10**7) -> dict[str, Any]:
    parser = Parser(bytearray(body), most_values, most_text)
    for _ in parser.steps():
        pass
    return parser.fields


@given(st.dictionaries(_TEXT, _JSON, max_size=5))
def test_steps_give_what_the_decoder_gives(fields: dict[str, Any]) -> None:
    """Both ways to decode agree on all that an honest guest may say, with or without white space."""
    for text in (json.dumps(fields), json.dumps(fields, indent=1)):
        assert _parsed(text.encode()) == json.loads(text)


@given(st.text(st.sampled_from('{}[],:" 01-.eEtrunl\\'), max_size=12))
def test_steps_refuse_what_the_decoder_refuses(body: str) -> None:
    """Both ways agree on what is no JSON object."""
    found: list[object] = []
    for decode in (decode_json, _parsed):
        try:
            found.append(decode(body.encode()))
        except MessageError:
            found.append(None)
    assert found[0] == found[1]


@given(st.integers(32_000, 33_000), st.sampled_from(["\U0001f600", "\ud83d", "\\", "\udc00", "\ud83d\\", "é"]))
def test_a_text_may_be_cut_anywhere(length: int, odd: str) -> None:
    """Escapes and halves of characters at the edge of a piece come through."""
    fields = {"a": "x" * length + odd * 5 + "y" * 40_000}
    assert _parsed(json.dumps(fields).encode()) == json.loads(json.dumps(fields))


@pytest.mark.parametrize("quoted", [b"", b'"' + b"," * 2000 + b'",'])
def test_values_are_counted_exactly(quoted: bytes) -> None:
    """As many as the bound are taken, one more is refused, and marks in texts are no values."""
    bound = Bound(100_000, 1000)
    body = b'{"a":[' + quoted + b"0," * (997 - bool(quoted)) + b"0]}"
    fits = Decoding(body, bound)
    list(fits.steps)
    assert (len(fits.fields["a"]), fits.size) == (998, len(body))
    with pytest.raises(MessageError, match="values"):
        list(Decoding(body.replace(b"0]", b"0,0]"), bound).steps)


@pytest.mark.parametrize("size", [1000, 500_000])
def test_depth_is_bounded(size: int) -> None:
    """What is nested deeper than callers could handle is refused, in small messages and in large ones."""
    for depth, is_fine in ((MOST_DEPTH - 1, True), (MOST_DEPTH + 1, False)):
        body = b'{"b":"' + b"x" * size + b'","a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
        decoding = Decoding(body, CELL)
        if is_fine:
            list(decoding.steps)
        else:
            with pytest.raises(MessageError, match="deeper"):
                list(decoding.steps)
