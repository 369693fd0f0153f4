"""A claimed VM for synchronous callers: the names and promises are those of the asynchronous class."""

from __future__ import annotations

from sandbox.guest.identity import Receipt
from sandbox.pool import lease as asynchronous
from sandbox.sync.inside import Sandbox
from sandbox.sync.portal import Portal


class Lease:
    """One VM for one caller; see `sandbox.Lease`."""

    def __init__(self, portal: Portal, lease: asynchronous.Lease) -> None:
        self.vm = Sandbox(portal, lease.vm)
        self._portal = portal
        self._inner = lease

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def token(self) -> str:
        return self._inner.token

    @property
    def receipt(self) -> Receipt | None:
        return self._inner.receipt

    @property
    def has_ended(self) -> bool:
        return self._inner.has_ended

    @property
    def left(self) -> float | None:
        return self._portal.do(lambda: self._inner.left)

    def renew(self, ttl: float | None) -> None:
        self._portal.do(lambda: self._inner.renew(ttl))

    def wait_ended(self) -> None:
        self._portal.call(self._inner.wait_ended())

    def release(self) -> None:
        self._portal.call(self._inner.release())

    def release_nowait(self) -> None:
        self._portal.do(self._inner.release_nowait)

    def __enter__(self) -> Sandbox:
        return self.vm

    def __exit__(self, *_error: object) -> None:
        if self._portal.is_running:
            self._portal.call(self._inner.__aexit__(None, None, None))
