"""A guest's end of the channel for tests: they say what the guest says, and see what the host sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from sandbox.errors import GuestLost
from sandbox.guest.client import GuestClient
from sandbox.guest.execution import Execution
from sandbox.guest.request import Request
from sandbox.hypervisor.stream import SocketStream
from sandbox.hypervisor.turns import Account
from sandbox.wire import HOST_LIMITS, Decoder, Kind


class Channel:
    """Stands for the socket; everything behind it is real."""

    def __init__(self) -> None:
        self.queued_bytes = self.sent_bytes = 0
        self.account = Account()
        self.heard: list[Kind] = []
        self._decoder = Decoder(HOST_LIMITS)
        self.client = GuestClient(cast("SocketStream", self))

    def start_receiving(self, on_data: Callable[[bytes], bool], go_on: Callable[[], bool]) -> None:
        self._on_data, self._go_on = on_data, go_on

    def say(self, data: bytes) -> None:
        """Have the host take this; return when all of it was handled."""
        is_behind = self._on_data(data)
        while is_behind:
            is_behind = self._go_on()

    def write(self, data: bytes) -> None:
        self.queued_bytes += len(data)
        self.sent_bytes += len(data)
        self.heard += [frame.kind for frame in self._decoder.feed(data)]

    async def wait_unsent_below(self, _size: int) -> None:
        pass

    def close(self) -> None:
        pass

    def start(self, **options: Any) -> Execution:
        return self.client.start(Request("argv", {"argv": ["x"]}, **options))

    def release(self) -> None:
        """End the conversation, so that no timer of it stays in the event loop."""
        if self.client.lost is None:
            self.client.close(GuestLost("the test is over"))
