"""What makes one clone differ from the next, and the check that the guest has really taken it."""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from sandbox.errors import ProtocolError
from sandbox.wire import PROTOCOL_VERSION

ENTROPY_BYTES = 64
MAX_CLOCK_ERROR = 0.05
"""Seconds by which a guest's clock may be off when it is handed out."""


class Ready(BaseModel):
    """The guest's answer to HELLO. Strings are bounded by the frame's limit; nothing here names a host object."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    proof: str
    clock_ns: int
    hostname: str
    machine_id: str
    boot_id: str
    protocol: int
    agent: str


@dataclass(frozen=True)
class Identity:
    """Names, epoch and entropy of one machine; drawn on the host, used once."""

    hostname: str
    epoch: int = field(default_factory=lambda: secrets.randbits(32))
    entropy: bytes = field(default_factory=lambda: secrets.token_bytes(ENTROPY_BYTES), repr=False)
    machine_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def hello(self) -> dict[str, object]:
        """Return the message to the guest; the clock is read now, so send it now."""
        return {
            "entropy": self.entropy.hex(),
            "clock_ns": time.time_ns(),
            "hostname": self.hostname,
            "machine_id": self.machine_id,
            "boot_id": self.boot_id,
        }

    def verify(self, ready: Ready) -> None:
        """Raise `ProtocolError` unless the guest proved that identity and entropy are in force."""
        if ready.protocol != PROTOCOL_VERSION:
            raise ProtocolError(
                f"the guest speaks protocol {ready.protocol}, this library {PROTOCOL_VERSION}; rebuild its image"
            )
        names = [self.hostname, self.machine_id, self.boot_id]
        proof = hashlib.sha256(self.entropy + "\n".join(names).encode()).hexdigest()
        if [ready.hostname, ready.machine_id, ready.boot_id] != names or not secrets.compare_digest(ready.proof, proof):
            raise ProtocolError("the guest did not confirm its new identity and randomness; it is not used")


@dataclass(frozen=True)
class Receipt:
    """What a machine proved before it became ready."""

    machine_id: str
    hostname: str
    epoch: int
    agent: str
    clock_offset: float
    """Guest clock minus host clock in seconds, at most `round_trip` off."""
    round_trip: float
