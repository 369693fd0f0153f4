"""An execution against a small model: right frames in any order; what an honest guest could not send is refused."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandbox.errors import GuestLost, ProtocolError
from sandbox.guest.events import Events, Output
from sandbox.result import Outcome, Result
from sandbox.wire import CHUNK_BYTES, GRANT_BYTES, INPUTS, OUTPUTS, WINDOW_BYTES, Kind, encode, pid, window
from tests.fakes.virtual_time import VirtualTimeLoop
from tests.fuzz.channel import Channel

T = TypeVar("T")
SIZES = st.sampled_from([1, 100, GRANT_BYTES - 1, GRANT_BYTES, CHUNK_BYTES])
STREAMS = st.sampled_from([Kind.OUT, Kind.ERR])


class ExecutionMachine(RuleBasedStateMachine):
    """What has been said, as plain numbers, beside the execution that heard it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.reset()

    def reset(self) -> None:
        self.is_started = self.is_killed = False
        self.verdict: Outcome | None = None
        self.received = dict.fromkeys(OUTPUTS, 0)
        self.granted = dict.fromkeys(OUTPUTS, 0)
        self.spent = dict.fromkeys(INPUTS, 0)
        self.written = {Kind.OUT: b"", Kind.ERR: b""}
        self.reader: Events | None = None
        self.taken = {Kind.OUT: 0, Kind.ERR: 0}

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            self.channel = Channel()
            self.execution = self.channel.start(keep_bytes=100_000)

        self.run(begin())

    def say(self, kind: Kind, payload: bytes, *, is_honest: bool) -> None:
        async def say() -> None:
            self.channel.say(encode(kind, 0, 1, payload))
            await anyio.lowlevel.checkpoint()

        self.run(say())
        if not is_honest:
            self.verdict = self.verdict or Outcome.PROTOCOL_ERROR
            assert isinstance(self.channel.client.lost, ProtocolError), f"{kind.name} was taken"

    @precondition(lambda self: self.channel.client.lost is None)
    @rule()
    def start(self) -> None:
        self.say(Kind.STARTED, pid(7), is_honest=not self.is_started and self.verdict is None)
        self.is_started = True

    @precondition(lambda self: self.channel.client.lost is None)
    @rule(kind=STREAMS, size=SIZES)
    def output(self, kind: Kind, size: int) -> None:
        data = bytes([self.received[kind] % 251]) * size
        fits = self.received[kind] + size - self.granted[kind] <= WINDOW_BYTES
        honest = fits and self.verdict is None
        self.say(kind, data, is_honest=honest)
        if honest:
            self.received[kind] += size
            self.written[kind] += data
            self.settle(kind)

    @precondition(lambda self: self.reader is not None and self.verdict is None)
    @rule(kind=STREAMS)
    def flood(self, kind: Kind) -> None:
        for _ in range(1 + WINDOW_BYTES // CHUNK_BYTES):
            if self.verdict is None:
                self.output(kind, CHUNK_BYTES)

    def settle(self, kind: Kind) -> None:
        """The guest gets credit for what was taken, in portions."""
        is_slow = self.reader is not None and not self.is_killed
        floor = min(self.received[kind], self.taken[kind]) if is_slow else self.received[kind]
        if floor - self.granted[kind] >= GRANT_BYTES and self.verdict is None:
            self.granted[kind] = floor

    @precondition(lambda self: self.channel.client.lost is None)
    @rule(code=st.integers(0, 255) | st.none())
    def end(self, code: int | None) -> None:
        honest = self.verdict is None
        fields = {"code": code, "signal": 9 if code is None else None, "cpu_us": 1}
        self.say(Kind.EXITED, json.dumps(fields).encode(), is_honest=honest)
        if honest:
            self.verdict = Outcome.EXITED if code is not None else Outcome.SIGNALED

    @precondition(lambda self: self.channel.client.lost is None)
    @rule(stream=st.sampled_from(INPUTS), count=st.sampled_from([1, GRANT_BYTES - 1, GRANT_BYTES, WINDOW_BYTES]))
    def grant(self, stream: Kind, count: int) -> None:
        honest = GRANT_BYTES <= count <= self.spent[stream] and self.verdict is None
        self.say(Kind.WINDOW_IN, window(stream, count), is_honest=honest)
        if honest:
            self.spent[stream] -= count

    @precondition(lambda self: self.channel.client.lost is None)
    @rule(kind=st.sampled_from([Kind.READY, Kind.PONG, Kind.PREPARED, Kind.QUIESCED, Kind.ANSWER]))
    def never(self, kind: Kind) -> None:
        payload = {Kind.READY: bytes(44), Kind.ANSWER: b"x"}.get(kind, b"")
        self.say(kind, payload, is_honest=False)

    @precondition(lambda self: self.verdict is None)
    @rule(size=st.sampled_from([1, 1000, 70_000]))
    def write(self, size: int) -> None:
        if self.spent[Kind.STDIN] + size <= WINDOW_BYTES:
            self.run(self.execution.write(bytes(size)))
            self.spent[Kind.STDIN] += size

    @precondition(lambda self: self.verdict is None)
    @rule()
    def kill(self) -> None:
        async def kill() -> None:
            self.execution.kill()

        self.run(kill())
        self.is_killed = True
        for kind in self.written:
            self.settle(kind)

    @precondition(lambda self: self.channel.client.lost is not None)
    @rule()
    def begin_again(self) -> None:
        self.run(self.finish())
        self.reset()
        self.begin()

    @precondition(lambda self: self.reader is None and self.verdict is None)
    @rule()
    def follow(self) -> None:
        async def follow() -> None:
            self.reader = self.execution.events()

        self.run(follow())
        self.taken = {kind: self.received[kind] for kind in self.written}

    @precondition(lambda self: self.reader is not None and bool(self.reader._arrived))
    @rule()
    def take(self) -> None:
        """Take what has arrived since, as a slow reader does."""
        reader = self.reader
        assert reader is not None

        async def take() -> None:
            while reader._arrived:
                event = await anext(reader)
                if isinstance(event, Output):
                    kind = Kind.OUT if event.stream == "stdout" else Kind.ERR
                    assert self.written[kind][event.offset :][: len(event.data)] == event.data
                    self.taken[kind] = max(self.taken[kind], event.offset + len(event.data))
                    self.settle(kind)

        self.run(take())

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "execution"):
            return
        execution = self.execution
        assert execution.outcome is self.verdict
        assert self.channel.heard.count(Kind.KILL) <= 1
        assert execution.has_ended == (self.verdict is not None)
        assert (self.channel.client.lost is None) or self.verdict is not None
        assert execution._intake._received == {**self.received, Kind.ANSWER: 0} or self.channel.client.lost is not None
        if self.channel.client.lost is None and self.verdict is None:
            assert {kind: execution._intake._granted[kind] for kind in self.written} == {
                kind: self.granted[kind] for kind in self.written
            }
            assert {kind: WINDOW_BYTES - execution._inputs._credit[kind] for kind in INPUTS} == self.spent

    def teardown(self) -> None:
        if hasattr(self, "execution"):
            self.run(self.finish())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    async def finish(self) -> None:
        """Whatever happened, whoever waits gets an answer, the same each time, with what had come until then."""
        if self.verdict is None:
            self.channel.release()
        results: list[Result | None] = []
        for _ in range(2):
            try:
                results.append(await self.execution.wait())
            except GuestLost as error:
                results.append(error.partial)
        first = results[0]
        assert first is not None
        assert results[1] is not None
        assert first.outcome is results[1].outcome
        if self.reader is not None:
            self.reader.close()
        for kind, data in (("stdout", self.written[Kind.OUT]), ("stderr", self.written[Kind.ERR])):
            assert getattr(first, kind) == data[:100_000]
        self.channel.release()


TestExecution = ExecutionMachine.TestCase
TestExecution.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
