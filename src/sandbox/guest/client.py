"""The conversation with one guest: handshake, executions, quiescence; answered or lost, nothing in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

import anyio
from pydantic import ValidationError

from sandbox.errors import ConfigError, GuestLost, ProtocolError
from sandbox.guest.execution import Execution
from sandbox.guest.identity import GOOD_CLOCK_ERROR, MAX_CLOCK_ERROR, Identity, Receipt
from sandbox.hypervisor.stream import SocketStream
from sandbox.wire import (
    GUEST_LIMITS,
    HEADER_BYTES,
    HOST_LIMITS,
    Decoder,
    Frame,
    FrameError,
    Kind,
    encode,
    encode_count,
    encode_json,
)

SEND_SECONDS = 10.0
"""A guest that takes nothing for so long is lost."""
_CLOCK_ATTEMPTS = 3
_LONGEST_DELAY = 0.3


class GuestClient:
    """Owns the protocol's state for one machine. Every failure is final: `lost` is then set and `on_lost` called."""

    _delay: ClassVar[float] = 0.0
    """Seconds that the last first HELLO took to become effective: a clone's first work is slow, equally each time."""

    def __init__(self, stream: SocketStream, on_lost: Callable[[GuestLost], None] = lambda _: None) -> None:
        self.lost: GuestLost | None = None
        self._stream = stream
        self._on_lost = on_lost
        self._decoder = Decoder(GUEST_LIMITS)
        self._epoch = 0
        self._executions: dict[int, Execution] = {}
        self._last_id = 0
        self._reply: Frame | None = None
        self._reply_kind: Kind | None = None
        self._replied = anyio.Event()
        self._sending = anyio.Lock(fast_acquire=True)
        stream.start_receiving(self._on_data)

    async def handshake(self, identity: Identity, timeout: float) -> Receipt:
        """Give the guest its identity and clock; return once it has proved both.

        Raises `ProtocolError` when the proof is wrong and `GuestLost` when there is none within `timeout` seconds.
        """
        self._epoch = identity.epoch
        for attempt in range(_CLOCK_ATTEMPTS):  # a guest that booted meanwhile sets its clock late: tell the time again
            sent = time.time_ns()
            ahead = GuestClient._delay if attempt == 0 else 0.0
            message = encode(Kind.HELLO, self._epoch, 0, identity.hello(ahead))
            payload = await self._ask(message, Kind.READY, timeout)
            answered = time.time_ns()
            try:
                ready = identity.verify(payload)
            except ProtocolError as error:
                raise self._fail(error) from None
            offset = (ready.clock_ns - answered) / 1e9
            if attempt == 0 and (delay := ahead - offset) < _LONGEST_DELAY:  # else the guest was still booting
                GuestClient._delay = max(0.0, delay)
            if abs(offset) <= GOOD_CLOCK_ERROR:
                break
        if abs(offset) > MAX_CLOCK_ERROR:
            raise self._fail(ProtocolError(f"the guest's clock is {offset:.3f} s off after {_CLOCK_ATTEMPTS} attempts"))
        return Receipt(
            machine_id=identity.machine_id,
            hostname=identity.hostname,
            epoch=identity.epoch,
            agent=ready.agent,
            clock_offset=offset,
            round_trip=(answered - sent) / 1e9,
        )

    async def quiesce(self, timeout: float) -> None:
        """Bring the guest to rest; afterwards it answers nothing but a new handshake."""
        await self._ask(encode(Kind.QUIESCE, self._epoch), Kind.QUIESCED, timeout)

    def open_execution(self) -> Execution:
        """Return a new execution; `close_execution` gives its id back."""
        if self.lost is not None:
            raise self.lost
        self._last_id += 1
        execution = Execution(self._last_id)
        self._executions[execution.id] = execution
        return execution

    def close_execution(self, execution: Execution) -> None:
        self._executions.pop(execution.id, None)

    async def send(self, kind: Kind, ident: int, payload: bytes = b"") -> None:
        await self._send(encode(kind, self._epoch, ident, payload))

    async def send_json(self, kind: Kind, ident: int, message: dict[str, object]) -> None:
        data = encode_json(kind, self._epoch, ident, message)
        if len(data) - HEADER_BYTES > HOST_LIMITS[kind]:
            raise ConfigError(
                f"code, arguments and environment make {len(data)} bytes, the limit is {HOST_LIMITS[kind]}; "
                "put large data into a file or on standard input"
            )
        await self._send(data)

    async def send_count(self, kind: Kind, ident: int, count: int) -> None:
        await self._send(encode_count(kind, self._epoch, ident, count))

    def close(self, error: GuestLost) -> None:
        """End the conversation: everybody who waits gets `error`."""
        self._fail(error)

    async def _ask(self, message: bytes, kind: Kind, timeout: float) -> bytes:
        """Send a request that has exactly one answer and return the answer's payload."""
        self._reply, self._reply_kind, self._replied = None, kind, anyio.Event()
        with anyio.move_on_after(timeout):
            await self._send(message)
            await self._replied.wait()
        self._reply_kind = None
        if self.lost is not None:
            raise self.lost
        if self._reply is None:
            raise self._fail(GuestLost(f"the guest did not answer with {kind.name} within {timeout:g} s"))
        return self._reply.payload

    async def _send(self, data: bytes) -> None:
        """Send whole frames: cancellation waits for the last byte, because a torn frame would end the conversation."""
        if self.lost is not None:
            raise self.lost
        with anyio.CancelScope(shield=True), anyio.move_on_after(SEND_SECONDS):
            async with self._sending:
                try:
                    await self._stream.send(data)
                except (OSError, anyio.ClosedResourceError) as error:
                    raise self._fail(GuestLost(f"the VM has ended: its channel broke ({error})")) from error
                return
        raise self._fail(GuestLost(f"the guest took no data for {SEND_SECONDS:g} s"))

    def _on_data(self, data: bytes) -> None:
        if not data:
            self._fail(GuestLost("the guest closed the channel: its VM has ended"))
            return
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(frame)
        except (FrameError, ValidationError) as error:
            self._fail(ProtocolError(f"the guest broke the protocol: {str(error).splitlines()[0]}"))

    def _on_frame(self, frame: Frame) -> None:
        if frame.epoch != self._epoch:
            raise FrameError(f"a frame of epoch {frame.epoch} came in epoch {self._epoch}")
        if frame.kind in (Kind.READY, Kind.QUIESCED):
            if frame.kind is not self._reply_kind or self._reply is not None:
                raise FrameError(f"{frame.kind.name} was not asked for")
            self._reply = frame
            self._replied.set()
        elif (execution := self._executions.get(frame.id)) is not None:
            execution.deliver(frame)
        elif not 0 < frame.id <= self._last_id:
            raise FrameError(f"execution {frame.id} was never started")
        # else: late words of an execution that was given up; they count for nothing

    def _fail(self, error: GuestLost) -> GuestLost:
        """Make `error` the end of this conversation, unless it has ended before; return what is to be raised."""
        if self.lost is None:
            self.lost = error
            self._stream.close()
            self._replied.set()
            for execution in self._executions.values():
                execution.lose(error)
            self._on_lost(error)
        return self.lost
