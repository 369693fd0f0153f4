"""The conversation with one guest: handshake, executions, quiescence; answered or lost, nothing in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import ClassVar

import anyio
from pydantic import ValidationError

from sandbox.certificate import Cause
from sandbox.errors import ConfigError, GuestLost, ProtocolError, StateError, afresh
from sandbox.guest.execution import KILL_SECONDS, Execution
from sandbox.guest.identity import GOOD_CLOCK_ERROR, MAX_CLOCK_ERROR, Identity, Receipt
from sandbox.guest.inbox import Inbox
from sandbox.guest.registry import Registry
from sandbox.guest.request import Request
from sandbox.guest.said import fault
from sandbox.guest.stages import tell_handshake
from sandbox.guest.verdict import lost
from sandbox.guest.watchdog import Watchdog
from sandbox.home import Home
from sandbox.hypervisor.stream import SocketStream
from sandbox.hypervisor.turns import FLOOD_SECONDS, TURN_SECONDS
from sandbox.trace.stage import stage
from sandbox.wire import (
    HEADER_BYTES,
    HOST_LIMITS,
    Frame,
    FrameError,
    Kind,
    encode,
    encode_json,
)

_ANSWERS = (Kind.READY, Kind.PREPARED, Kind.QUIESCED)
_HIGH_WATER = 1024 * 1024
_CLOCK_ATTEMPTS = 3
_LONGEST_DELAY = 0.3


class GuestClient:
    """Owns the protocol's state for one machine. Every failure is final: `lost` is then set and `on_lost` called.

    `on_closed` is called when the guest's end of the channel closes: whoever knows why calls `close` then.
    """

    _delay: ClassVar[float] = 0.0
    """Seconds that the last first HELLO took to become effective: a clone's first work is slow, equally each time."""

    def __init__(
        self,
        stream: SocketStream,
        *,
        name: str = "",
        on_lost: Callable[[GuestLost], None] = lambda _: None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.timings: Mapping[str, float] = {}
        self.accelerator = ""
        self.lost: GuestLost | None = None
        self.clock_era = (name, 0)
        """Changes whenever the guest's clock is set; for traces."""
        self.is_open = True
        """False as soon as the guest's end is closed, a moment before `lost` can say why."""
        self.executions = Registry()
        self.on_execution: Callable[[Execution], None] = lambda _: None
        """Called with each execution when it was sent, and when it has ended."""
        self._stream = stream
        self._on_lost = on_lost
        self._on_closed = on_closed or (lambda: self.close(lost(Cause.CHANNEL, "the guest closed the channel")))
        self._inbox = Inbox()
        self._epoch = 0
        self._reply: Frame | None = None
        self._reply_kind: Kind | None = None
        self._replied = anyio.Event()
        self._watchdog = Watchdog(
            is_needed=lambda: self.lost is None and self.executions.any_running,
            ask=lambda: self.send(Kind.PING, 0),
            give_up=lambda said: self.close(lost(Cause.UNRESPONSIVE, said)),
        )
        self.kill_patience = KILL_SECONDS
        """How long its guest may take to obey a kill."""
        self._home = Home()
        self._ended = ""
        self._now = asyncio.get_running_loop().time
        """Unlike anyio's clock it can be read in callbacks, too, where sniffio knows of no asynchronous library."""
        self._last_use = self._now()
        stream.start_receiving(self._on_data, self._go_on)

    async def handshake(self, identity: Identity, timeout: float, *, is_cold: bool = True) -> Receipt:
        """Give the guest its identity and clock; return once it has proved both.

        A clone's first work is slow (`is_cold`), so its first HELLO tells the time at which it will take effect.

        Raises `ProtocolError` when the proof is wrong and `GuestLost` when there is none within `timeout` seconds.
        """
        self._epoch = identity.epoch
        for attempt in range(_CLOCK_ATTEMPTS):  # a guest that booted meanwhile sets its clock late: tell the time again
            sent = time.time_ns()
            ahead = GuestClient._delay if attempt == 0 and is_cold else 0.0
            message = encode(Kind.HELLO, self._epoch, 0, identity.hello(ahead))
            with stage("HELLO, until READY"):
                asked = time.monotonic()
                payload = await self._ask(message, Kind.READY, timeout)
                heard = time.monotonic()
            answered = time.time_ns()
            try:
                ready = identity.verify(payload)
            except ProtocolError as error:
                raise self._fail(lost(Cause.PROTOCOL, str(error))) from None
            offset = (ready.clock_ns - answered) / 1e9
            self.clock_era = (self.name, self.clock_era[1] + 1)
            tell_handshake(self.clock_era, asked, heard, sent + int(ahead * 1e9), ready.clock_ns)
            if (
                attempt == 0 and is_cold and (delay := ahead - offset) < _LONGEST_DELAY
            ):  # else the guest was still booting
                GuestClient._delay = max(0.0, delay)
            if abs(offset) <= GOOD_CLOCK_ERROR:
                break
        if abs(offset) > MAX_CLOCK_ERROR:
            said = f"the guest's clock is {offset:.3f} s off after {_CLOCK_ATTEMPTS} attempts"
            raise self._fail(lost(Cause.PROTOCOL, said))
        return Receipt(
            machine_id=identity.machine_id,
            boot_id=identity.boot_id,
            hostname=identity.hostname,
            epoch=identity.epoch,
            agent=ready.agent,
            clock_offset=offset,
            round_trip=(answered - sent) / 1e9,
        )

    async def prepare(self, timeout: float) -> None:
        """Have the guest do what takes time before a snapshot; it goes on running."""
        await self._ask(encode(Kind.PREPARE, self._epoch), Kind.PREPARED, timeout)

    async def quiesce(self, timeout: float) -> None:
        """Bring the guest to rest; afterwards it answers nothing but a new handshake."""
        await self._ask(encode(Kind.QUIESCE, self._epoch), Kind.QUIESCED, timeout)

    def start(self, request: Request) -> Execution:
        """Start a program and return at once. Synchronous: either it is under way, or an error says why not.

        Raises `GuestLost` when the VM is gone, `StateError` when its lease has ended or the id was used before,
        `ConfigError` when the request is too large.
        """
        self.check_lease()
        if self.lost is not None:
            raise afresh(self.lost)
        execution = self.executions.add(lambda number: Execution(self, number, request), request.id)
        try:
            execution.start()
        except BaseException:
            self.executions.remove(execution)
            raise
        self.note_use()
        self._watchdog.watch()
        self.on_execution(execution)
        return execution

    def on_ended(self, execution: Execution) -> None:
        self.note_use()
        self.executions.end(execution)
        self.on_execution(execution)

    def send(self, kind: Kind, ident: int, payload: bytes = b"") -> None:
        """Send one frame, whole, some time soon. Never waits: who sends much awaits `drained` in between."""
        if self.lost is None:
            self._stream.write(encode(kind, self._epoch, ident, payload))

    def send_json(self, kind: Kind, ident: int, message: dict[str, object]) -> None:
        data = encode_json(kind, self._epoch, ident, message)
        if len(data) - HEADER_BYTES > HOST_LIMITS[kind]:
            raise ConfigError(
                f"code, arguments and environment make {len(data)} bytes, the limit is {HOST_LIMITS[kind]}; "
                "put large data into a file or on standard input"
            )
        if self.lost is None:
            self._stream.write(data)

    async def drained(self) -> None:
        """Return when little is waiting to be sent, or the conversation has ended."""
        await self._stream.wait_unsent_below(_HIGH_WATER)

    @property
    def queued_bytes(self) -> int:
        """All that was ever given to be sent."""
        return self._stream.queued_bytes

    @property
    def sent_bytes(self) -> int:
        """All that QEMU has taken."""
        return self._stream.sent_bytes

    def close(self, error: GuestLost) -> None:
        """End the conversation: everybody who waits gets `error`."""
        self._fail(error)

    @property
    def times_heard(self) -> int:
        """How often something has come from the guest, whatever it was."""
        return self._watchdog.times_heard

    def note_use(self) -> None:
        """Count this moment as use: the caller asked for something or took something, or a program ended."""
        self._last_use = self._now()

    def release(self, said: str) -> None:
        """End the conversation because the lease has ended, which `said` states; later calls are refused with it.

        If the VM was lost before, the refusal also says how.
        """
        if self.lost is not None:
            said = f"{said} ({self.lost})"
        self._ended = self._ended or said
        self.close(lost(Cause.RELEASED, said))

    def check_lease(self) -> None:
        """Raise `StateError` where nothing may be asked: in another event loop, or after the end of the lease."""
        self.check_home()
        if self._ended:
            raise StateError(f"{self._ended}; claim another VM")

    def check_home(self) -> None:
        """Raise `StateError` in another event loop or thread than this conversation's."""
        self._home.check(self)

    def __repr__(self) -> str:
        return f"<VM {self.name}>"

    @property
    def idle_seconds(self) -> float:
        """Seconds since the VM was last used; 0 while a program runs, or a server works.

        What we send of our own accord, such as a watchdog's question, is no use.
        """
        if self.executions.any_busy:
            return 0.0
        return self._now() - self._last_use

    async def _ask(self, message: bytes, kind: Kind, timeout: float) -> bytes:
        """Send a request that has exactly one answer and return the answer's payload."""
        if self.lost is not None:
            raise afresh(self.lost)
        self._reply, self._reply_kind, self._replied = None, kind, anyio.Event()
        self._stream.write(message)
        with anyio.move_on_after(timeout):
            await self._replied.wait()
        self._reply_kind = None
        if self.lost is not None:
            raise afresh(self.lost)
        if self._reply is None:
            raise self._fail(
                lost(Cause.UNRESPONSIVE, f"the guest did not answer with {kind.name} within {timeout:g} s")
            )
        return self._reply.payload

    def _on_data(self, data: bytes) -> bool:
        """Take what has arrived; return whether some of it is left for another turn."""
        if not data:
            self.is_open = False
            self._on_closed()
            return False
        self._inbox.put(data)
        return self._go_on()

    def _go_on(self) -> bool:
        """Handle frames for one turn, of what has arrived; return whether there may be more of them."""
        until = time.perf_counter() + TURN_SECONDS
        self._watchdog.hear()
        try:
            if self._stream.account.behind > FLOOD_SECONDS:
                raise FrameError(
                    f"its frames have cost the host {FLOOD_SECONDS:g} s of work without a pause, "
                    f"{self._inbox.frames} of them with {self._inbox.bytes} bytes"
                )
            while self.lost is None and (frame := self._inbox.next()) is not None:
                self._on_frame(frame)
                if time.perf_counter() > until:
                    return self.lost is None
        except (FrameError, ValidationError) as error:
            said = fault(error) if isinstance(error, ValidationError) else str(error)
            self._fail(lost(Cause.PROTOCOL, f"the guest broke the protocol: {said}"))
        return False

    def _on_frame(self, frame: Frame) -> None:
        if frame.epoch != self._epoch:
            raise FrameError(f"a frame of epoch {frame.epoch} came in epoch {self._epoch}")
        if frame.kind in _ANSWERS:
            if frame.kind is not self._reply_kind or self._reply is not None:
                raise FrameError(f"{frame.kind.name} was not asked for")
            self._reply = frame
            self._replied.set()
        elif frame.kind is Kind.PONG:
            if not self._watchdog.unanswered:
                raise FrameError("PONG was not asked for")
            self._watchdog.unanswered -= 1
        elif (execution := self.executions.running(frame.id)) is not None:
            execution.deliver(frame)
        else:
            raise FrameError(f"{frame.kind.name} came for {frame.id}, which is no running execution")

    def _fail(self, error: GuestLost) -> GuestLost:
        """Make `error` the end of this conversation, unless it has ended before; return what is to be raised."""
        if self.lost is None:
            self.lost = error
            self._watchdog.stop()
            self._stream.close()
            self._inbox.clear()
            self._replied.set()
            for execution in self.executions.all_running():
                execution.lose(error)
            self._on_lost(error)
        return afresh(self.lost)
