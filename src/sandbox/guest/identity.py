"""What makes one clone differ from the next, and the check that the guest has really taken it."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sandbox.errors import ProtocolError
from sandbox.result import Isolation, isolation
from sandbox.wire import ENTROPY_BYTES, HELLO, NONCE_BYTES, PROTOCOL_VERSION, READY

GOOD_CLOCK_ERROR = 0.05
MAX_CLOCK_ERROR = 0.5
"""Seconds by which a guest's clock may be off: the first is tried for, beyond the second the guest is refused."""


class Ready(NamedTuple):
    """The guest's answer to HELLO."""

    clock_ns: int
    protocol: int
    agent: int
    nonce: bytes
    machine_id: bytes
    boot_id: bytes
    hostname: bytes


@dataclass(frozen=True)
class Identity:
    """Names, epoch and entropy of one machine; drawn on the host, used once."""

    hostname: str
    epoch: int = field(default_factory=lambda: secrets.randbits(32))
    entropy: bytes = field(default_factory=lambda: secrets.token_bytes(ENTROPY_BYTES), repr=False)
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(NONCE_BYTES), repr=False)
    machine_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def hello(self, ahead: float = 0.0) -> bytes:
        """Return the message to the guest, for it to take effect `ahead` seconds from now: send it now."""
        return HELLO.pack(self.entropy, time.time_ns() + int(ahead * 1e9), self.nonce, *self._names)

    def verify(self, payload: bytes) -> Ready:
        """Return the guest's answer; raise `ProtocolError` unless it confirms this identity, and so its entropy."""
        if len(payload) != READY.size:
            raise ProtocolError(f"the guest's READY has {len(payload)} bytes, not {READY.size}; rebuild its image")
        ready = Ready(*READY.unpack(payload))
        if ready.protocol != PROTOCOL_VERSION:
            raise ProtocolError(
                f"the guest speaks protocol {ready.protocol}, this library {PROTOCOL_VERSION}; rebuild its image"
            )
        in_force = ready.machine_id, ready.boot_id, ready.hostname.rstrip(b"\0")
        if ready.nonce != self.nonce or in_force != self._names:
            raise ProtocolError("the guest did not confirm its new identity and randomness; it is not used")
        return ready

    @property
    def _names(self) -> tuple[bytes, bytes, bytes]:
        return self.machine_id.encode(), self.boot_id.encode(), self.hostname.encode()


Origin = Literal["boot", "restore", "hit"]


@dataclass(frozen=True)
class Receipt:
    """What a machine proved before it became ready, where it comes from, and how long its making took.

    A machine without the proof never becomes ready, so whoever has a receipt has a machine of its own identity.
    """

    machine_id: str
    boot_id: str
    hostname: str
    epoch: int
    agent: int
    clock_offset: float
    """Guest clock minus host clock in seconds, at most `round_trip` off."""
    round_trip: float
    randomness_renewed: bool = True
    """The guest has confirmed that its kernel's generator was reseeded from this machine's own entropy.

    There is no other receipt. A guest that lies about this harms its own caller only.
    """
    proved_at: float = field(default_factory=time.monotonic, repr=False)
    """When, by the monotonic clock; a VM that was paused proves it again when it is woken."""
    origin: Origin = "boot"
    """`boot`; `restore`: cloned for this lease; `hit`: a pool had it ready."""
    series: str | None = None
    """The template's name without its generation; None for a booted machine."""
    generation: int | None = None
    """The template's number in its series."""
    template_age: float | None = None
    """Seconds from the bake of the template to the proof."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage: `queue`, `claim`, `start`, `warm_up`, or `ready` for a boot."""
    accelerator: str = ""
    """`kvm`, or `tcg` for software emulation. What its host knows, not what the guest said."""

    @property
    def isolation(self) -> Isolation:
        """`hardware`; or `emulated`, which is no security boundary."""
        return isolation(self.accelerator)

    @property
    def clock_offset_ms(self) -> float:
        """Guest clock minus host clock in milliseconds."""
        return self.clock_offset * 1000

    def to_dict(self) -> dict[str, Any]:
        """Return what a user wants to see of it, as values that JSON has."""
        return {
            "origin": self.origin,
            "accelerator": self.accelerator,
            "isolation": self.isolation,
            "series": self.series,
            "generation": self.generation,
            "template_age": None if self.template_age is None else round(self.template_age, 3),
            "randomness_renewed": self.randomness_renewed,
            "clock_offset_ms": round(self.clock_offset_ms, 3),
            "hostname": self.hostname,
            "machine_id": self.machine_id,
            "boot_id": self.boot_id,
            "timings": dict(self.timings),
        }
