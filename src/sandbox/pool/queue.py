"""Callers that wait for a VM, in the order in which they are served."""

from __future__ import annotations

from bisect import bisect_left, insort
from contextvars import copy_context
from itertools import count

import anyio

from sandbox.errors import PoolBusy, SandboxError
from sandbox.pool.lease import Lease

_numbers = count()


class Request:
    """One caller. Filled, once, by whoever has a VM or a reason why there is none."""

    def __init__(self, seniority: float, since: float = 0.0, lease_ttl: float | None = None) -> None:
        self.key = (seniority, next(_numbers))
        self.since = since
        self.lease_ttl = lease_ttl
        self.context = copy_context()
        """The caller's context variables: what is told of its lease is told in them."""
        self.answered = anyio.Event()
        self.lease: Lease | None = None
        self.error: SandboxError | None = None

    def grant(self, lease: Lease) -> None:
        self.lease = lease
        self.answered.set()

    def refuse(self, error: SandboxError) -> None:
        self.error = error
        self.answered.set()


class Queue:
    """A bounded queue by seniority; first come, first served among equals."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def put(self, request: Request) -> None:
        """Take a request; raise `PoolBusy` when too many wait already."""
        if len(self._requests) >= self._max_waiting:
            raise PoolBusy(f"{self._max_waiting} callers wait already, which is max_waiting; try again later")
        insort(self._requests, request, key=_key)

    def seniorities(self, skip: int, most: int) -> list[float]:
        """Return those of callers in the order in which they are served, without the first `skip`."""
        return [request.key[0] for request in self._requests[skip : skip + most]]

    def pop(self) -> Request:
        """Return the most senior request."""
        return self._requests.pop(0)

    def remove(self, request: Request) -> None:
        """Take a request out, if it is still in."""
        index = bisect_left(self._requests, request.key, key=_key)
        if index < len(self._requests) and self._requests[index] is request:
            del self._requests[index]

    def refuse_all(self, error: SandboxError) -> None:
        self.refuse_beyond(0, error)

    def refuse_beyond(self, count: int, error: SandboxError) -> None:
        """Refuse all but the most senior ones."""
        requests = self._requests[count:]
        del self._requests[count:]
        for request in requests:
            request.refuse(error)


def _key(request: Request) -> tuple[float, int]:
    return request.key
