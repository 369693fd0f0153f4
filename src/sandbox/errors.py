"""Every error that the library raises, as one tree.

    SandboxError
    ├─ ConfigError (ValueError)      the caller's mistake, found before anything started
    ├─ StateError                    the right call at the wrong time
    ├─ PoolClosed                    the pool is shutting down or was never opened
    ├─ PoolTimeout (TimeoutError)    no VM came free in time
    │  └─ PoolBusy                   so many wait already that waiting was not begun
    ├─ HostResources                 the host cannot carry another VM
    ├─ StartError                    no user code ran: always safe to retry
    │  ├─ GuestResources             the guest has no room for another process
    │  ├─ ImageError                 an image could not be built, found or verified
    │  ├─ TemplateError              a template could not be baked, or differs from its manifest
    │  └─ HypervisorError            libvirt or QEMU refused, or missed a deadline
    │     └─ StateNotLoaded          QEMU cannot load the state that a template holds
    ├─ GuestLost                     sent, but no answer: it may have run; never retried by us
    │  └─ ProtocolError              the guest broke the protocol, so nothing it says counts
    ├─ GuestFileError (OSError)      a file operation that the guest refused
    ├─ HostFileError (OSError)       a copy that this host's side cannot give or take, or should not
    └─ ExecutionFailed               raised by `Result.check()` only

What a guest program did (exit code, signal, time-out, output limit) is data in `Result`, never an exception.
Each class has a stable `code` for logs, JSON and callers in other languages.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, ClassVar, TypeVar

from sandbox.printable import printable

if TYPE_CHECKING:
    from sandbox.certificate import DeathCertificate
    from sandbox.result import Result


class SandboxError(Exception):
    """Base of every error of this library."""

    code: ClassVar[str] = "SANDBOX"

    def __str__(self) -> str:
        """Return the message as one line: words of a guest may be in it. `args` has it as it was."""
        return printable(super().__str__())


Error = TypeVar("Error", bound=SandboxError)


def afresh(error: Error) -> Error:
    """Return a copy to raise: callers who share a cause do not share a traceback."""
    fresh = copy(error)
    fresh.__cause__ = error
    return fresh


class ConfigError(SandboxError, ValueError):
    """The caller asked for something that cannot be; nothing was started."""

    code = "CONFIG"


class StateError(SandboxError):
    """The call is right but the object is not in a state to take it."""

    code = "STATE"


class PoolClosed(SandboxError):
    """The pool is closed, closing, or was never opened."""

    code = "POOL_CLOSED"


class PoolTimeout(SandboxError, TimeoutError):
    """No VM could be claimed within the caller's time-out."""

    code = "POOL_TIMEOUT"


class PoolBusy(PoolTimeout):
    """As many callers as allowed wait for a VM already."""

    code = "POOL_BUSY"


class HostResources(SandboxError):
    """The host has too little memory, disk or another resource for one more VM."""

    code = "HOST_RESOURCES"


class StartError(SandboxError):
    """A VM did not come up. No user code ran, so a retry is always safe."""

    code = "START"


class GuestResources(StartError):
    """The guest has no room for another process. Nothing ran: a retry is safe when something in the VM has ended."""

    code = "GUEST_RESOURCES"


class ImageError(StartError):
    """An image could not be built, was not found, or does not match its manifest."""

    code = "IMAGE"


class TemplateError(StartError):
    """A template could not be baked, or does not match its manifest."""

    code = "TEMPLATE"


class HypervisorError(StartError):
    """libvirt or QEMU refused a request or did not answer within its deadline."""

    code = "HYPERVISOR"


class StateNotLoaded(HypervisorError):
    """QEMU says that it cannot load the saved state of a template, which is then baked anew."""

    code = "STATE_NOT_LOADED"


class GuestLost(SandboxError):
    """The VM or the channel to it is gone. What was sent may have run; it is never retried.

    `partial` holds the output that had arrived, when an execution was under way. `certificate` states the cause.
    """

    code = "GUEST_LOST"
    partial: Result | None = None
    certificate: DeathCertificate | None = None


class ProtocolError(GuestLost):
    """The guest sent something that the protocol forbids. The VM is destroyed."""

    code = "PROTOCOL"


class GuestFileError(SandboxError, OSError):
    """The guest refused a file operation. `errno` is one that this host knows, `filename` what the caller has named."""

    code = "GUEST_FILE"


class HostFileError(SandboxError, OSError):
    """A copy between a guest and this host: our side cannot be read or written, or a name or size forbids it."""

    code = "HOST_FILE"


class ExecutionFailed(SandboxError):
    """`Result.check()` was called on an execution that did not exit with 0."""

    code = "EXECUTION_FAILED"

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result

    def __str__(self) -> str:
        """Return how it ended and the program's last words, which may be several lines."""
        return printable(Exception.__str__(self), keep="\n\t")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.result), self.__dict__
