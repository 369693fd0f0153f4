"""A guest that says anything at any time: every lie ends in one typed error, in bounded memory."""

from __future__ import annotations

import asyncio
import json
import os
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandbox.errors import ProtocolError
from sandbox.guest.request import Request
from sandbox.guest.server import Server, ServerGone
from sandbox.message import DATA_BYTES, Tag
from sandbox.message import encode as encode_message
from sandbox.result import Outcome
from sandbox.wire import (
    CHUNK_BYTES,
    GUEST_LIMITS,
    WINDOW_BYTES,
    Kind,
    encode,
    pid,
)
from tests.fuzz.channel import Channel

FRAMES = int(os.environ.get("SANDBOX_HOSTILE_FRAMES", "200000"))
SEED = int(os.environ.get("SANDBOX_SEED", "20250721"))
GROWTH_BYTES = 16 * 1024 * 1024
END: dict[str, Any] = {"code": 0, "signal": None, "cpu_us": 100}
_WRONG: list[Any] = ["0", [], {}, "\ud800", -1, 10**30, True, {"a": [{}]}]
NUMBERS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _bad_json(chance: random.Random) -> bytes:
    """Return an end that no honest guest would report."""
    return chance.choice(
        [
            b"",
            b"\xff\xfe{}",
            b"[" * 60_000 if chance.random() < 0.05 else b"[" * 1200,
            b'{"a":' * chance.choice([1000, 9000]) if chance.random() < 0.2 else b'{"code":0',
            b"9" * 60_000 if chance.random() < 0.1 else b"9" * 5000,
            b'{"code":0,"code":0,"signal":null,"cpu_us":1}',
            b'{"code":0,"signal":null,"cpu_us":NaN}',
            b'{"code":0,"signal":null,"cpu_us":-Infinity}',
            b'{"code":0,"signal":null,"cpu_us":1e999}',
            b'{"code":' + b"1" * chance.randrange(4, 6000) + b',"signal":null,"cpu_us":1}',
            b'{"code":0,"signal":null,"cpu_us":1,"\\ud800":1}',
            b'{"code":0,"signal":null,"cpu_us":1,"evidence":{"kernel_log":"\\udfff"}}',
            *(
                json.dumps(END | {chance.choice([*END, "cpu_us", "oom_kills", "evidence"]): wrong}).encode()
                for wrong in _WRONG
            ),
            json.dumps({key: END[key] for key in END if key != chance.choice([*END])} | {"signal": 9}).encode(),
            json.dumps(END | {"\x00" + chance.randbytes(4).hex(): 1}).encode(),
        ]
    )


def _cases(chance: random.Random) -> list[Callable[[], bytes]]:
    """Return makers of one malformed or misplaced frame each, for a client in epoch 7 in which execution 1 runs."""
    kinds = [Kind(kind) for kind in GUEST_LIMITS]

    def header(length: int, epoch: int, ident: int, kind: int) -> bytes:
        return struct.pack("!IIIB", length, epoch, ident, kind)

    def of_execution() -> Kind:
        return chance.choice([Kind.OUT, Kind.ERR, Kind.EXITED, Kind.WINDOW_IN, Kind.ANSWER, Kind.STARTED])

    def too_long() -> bytes:
        kind = chance.choice(kinds)
        lengths = [GUEST_LIMITS[kind] + 1, *(n for n in NUMBERS[2:]), chance.randrange(GUEST_LIMITS[kind] + 1, 2**32)]
        return header(chance.choice(lengths), 7, 1, kind) + chance.randbytes(chance.randrange(30))

    def unknown() -> bytes:
        kind = chance.choice(sorted(set(range(256)) - set(kinds)))
        return header(chance.choice(NUMBERS), chance.choice([7, 0]), 1, kind)

    def of_another_epoch() -> bytes:
        epoch = chance.choice([0, 6, 8, 2**32 - 1, chance.randrange(8, 2**32)])
        return encode(chance.choice(kinds), epoch, 1, bytes(4))

    def of_nobody() -> bytes:
        ident = chance.choice([0, 2, 2**31, 2**32 - 1, chance.randrange(2, 2**32)])
        return encode(of_execution(), 7, ident, chance.choice([b"", b"x", json.dumps(END).encode()]))

    def not_asked_for() -> bytes:
        kind = chance.choice([Kind.READY, Kind.PREPARED, Kind.QUIESCED, Kind.PONG])
        return encode(kind, 7, chance.choice([0, 1]), bytes(GUEST_LIMITS[kind]))

    def bad_end() -> bytes:
        return encode(Kind.EXITED, 7, 1, _bad_json(chance))

    def bad_window() -> bytes:
        stream, count = chance.choice([*Kind, 0, 255]), chance.choice([*NUMBERS, WINDOW_BYTES, WINDOW_BYTES + 1])
        whole = struct.pack("!BI", stream, count)
        return encode(Kind.WINDOW_IN, 7, 1, whole[: chance.choice([0, 1, 4, 5, 5, 5])])

    def bad_start() -> bytes:
        first = encode(Kind.STARTED, 7, 1, pid(1)) if chance.random() < 0.5 else b""
        return first + encode(Kind.STARTED, 7, 1, bytes(4) if first else bytes(chance.randrange(4)))

    def bad_output() -> bytes:
        empty = encode(chance.choice([Kind.OUT, Kind.ERR]), 7, 1)
        return chance.choice([empty, encode(Kind.ANSWER, 7, 1, chance.randbytes(chance.randrange(1, 100)))])

    def after_the_end() -> bytes:
        end = encode(Kind.EXITED, 7, 1, json.dumps(END).encode())
        return end + encode(of_execution(), 7, 1, json.dumps(END).encode()[: GUEST_LIMITS[Kind.STARTED]])

    return [
        too_long,
        unknown,
        of_another_epoch,
        of_nobody,
        not_asked_for,
        bad_end,
        bad_window,
        bad_start,
        bad_output,
        after_the_end,
    ]


def _refuse(data: bytes, chance: random.Random) -> None:
    """Say it to a client in the middle of its work, whole or in pieces: it must end in a `ProtocolError`."""
    channel = Channel()
    channel.client._epoch = 7
    execution = channel.start()
    if chance.random() < 0.5:
        channel.say(encode(Kind.OUT, 7, 1, b"honest"))
    cut = chance.randrange(len(data) + 1)
    for piece in (data[:cut], data[cut:]) if chance.random() < 0.3 else (data,):
        if piece and channel.client.lost is None:
            channel.say(piece)
    assert isinstance(channel.client.lost, ProtocolError), f"{data[:100]!r} was taken"
    assert execution.outcome in {Outcome.PROTOCOL_ERROR, Outcome.EXITED}


@pytest.mark.timeout(300)
def test_malformed_frames_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Of very many broken or misplaced frames each one ends in the typed error, and memory does not grow."""
    chance = random.Random(SEED)
    cases = _cases(chance)

    async def main() -> int:
        for number in range(FRAMES):
            if number == FRAMES // 20:
                before = _resident()
            _refuse(cases[number % len(cases)](), chance)
            if number % 100 == 0:
                await anyio.lowlevel.checkpoint()  # the loop drops cancelled timers
        return _resident() - before

    growth = asyncio.run(main())
    with capsys.disabled():
        sys.stdout.write(f" [{FRAMES} frames, seed {SEED}, growth {growth // 1024} KiB] ")
    assert growth < GROWTH_BYTES


async def test_honest_frames_are_not_refused() -> None:
    """The control: what an honest guest says in the same place is taken."""
    channel = Channel()
    channel.client._epoch = 7
    execution = channel.start()
    for kind, payload in [
        (Kind.STARTED, pid(1)),
        (Kind.OUT, b"x" * CHUNK_BYTES),
        (Kind.ERR, b"x"),
        (Kind.EXITED, json.dumps(END).encode()),
    ]:
        channel.say(encode(kind, 7, 1, payload))
    assert channel.client.lost is None
    assert execution.outcome is Outcome.EXITED
    channel.release()


async def test_flood_of_empty_messages_is_bounded() -> None:
    """A server that sends messages without content, which nobody takes, gets no credit for ever more of them."""
    channel = Channel()
    server = Server(channel.client, Request("files", {}, is_server=True))
    flood, sent = encode_message(Tag.END) * (CHUNK_BYTES // 5), 0
    while channel.client.lost is None and sent < 100 * WINDOW_BYTES:
        channel.say(encode(Kind.ANSWER, 0, 1, flood))
        sent += len(flood)
    assert isinstance(channel.client.lost, ProtocolError)
    assert sent <= 2 * WINDOW_BYTES
    assert server._decoder.held <= 2 * WINDOW_BYTES


async def test_server_that_is_ended_may_say_the_rest_and_nothing_is_kept_of_it() -> None:
    """It can end only when it got rid of what it had begun to say; nobody receives that any more."""
    channel = Channel()
    server = Server(channel.client, Request("files", {}, is_server=True))
    intake = server.execution._intake
    said = encode_message(Tag.DATA, bytes(DATA_BYTES)) * 100
    start = 0

    def say() -> bool:
        nonlocal start
        credit = intake._granted[Kind.ANSWER] + WINDOW_BYTES - intake._received[Kind.ANSWER]
        piece = said[start : start + min(CHUNK_BYTES, credit)]
        start += len(piece)
        if piece:
            channel.say(encode(Kind.ANSWER, 0, 1, piece))
        return bool(piece)

    while say():
        pass
    assert start < len(said), "a server that nobody listens to has to wait"
    kept = server._decoder.held
    server.close()
    assert channel.heard[-2:] == [Kind.KILL, Kind.WINDOW_OUT]
    while say():
        pass
    assert start == len(said)
    assert server._decoder.held == kept
    channel.release()


async def test_server_that_breaks_its_protocol_harms_only_its_caller() -> None:
    """Nonsense on a control stream ends that server; a program beside it goes on."""
    channel = Channel()
    server, beside = Server(channel.client, Request("files", {}, is_server=True)), channel.start()
    channel.say(encode(Kind.ANSWER, 0, 1, b"\xff" * 100))
    assert server.execution.was_stopped
    assert channel.heard.count(Kind.KILL) == 1
    channel.say(encode(Kind.EXITED, 0, 1, json.dumps(END | {"code": None, "signal": 9}).encode()))
    assert server.execution.outcome is Outcome.PROTOCOL_ERROR
    with pytest.raises(ServerGone):
        await server.receive()
    assert not beside.has_ended
    assert channel.client.lost is None
    channel.release()
