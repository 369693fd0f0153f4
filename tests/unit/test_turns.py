"""Streams that wait for a turn of one event loop: who is next, and for how long others have the loop."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import anyio.lowlevel

from sandbox.hypervisor.turns import SHARE, Account, Line


class Stream:
    """Notes its turns; each costs it so much."""

    def __init__(self, name: str, turns: list[str], *, wanted: int, cost: float = 0.0) -> None:
        self.account = Account()
        self._name, self._turns, self._wanted, self._cost = name, turns, wanted, cost

    def take_turn(self) -> bool:
        began = time.perf_counter()
        while time.perf_counter() < began + self._cost:
            pass
        self.account.charge(began, 0, is_behind=True)
        self._turns.append(self._name)
        self._wanted -= 1
        return self._wanted > 0


async def _served(line: Line, turns: list[str], number: int) -> None:
    with anyio.fail_after(10):
        while len(turns) < number:
            await anyio.lowlevel.checkpoint()


async def test_the_one_that_has_cost_least_is_next() -> None:
    """One that asks for little is not held up by those that ask for much, in whatever order they came."""
    line, turns = Line(), list[str]()
    for name in "abc":
        line.join(Stream(name, turns, wanted=5, cost=0.001))
    await _served(line, turns, 3)
    assert sorted(turns) == ["a", "b", "c"], "each has had one turn before one has a second"
    line.join(Stream("modest", turns, wanted=2))
    await _served(line, turns, 6)
    assert turns.index("modest") <= 4
    await _served(line, turns, 17)
    assert sorted(turns) == sorted("abc" * 5) + ["modest"] * 2


async def test_those_in_line_leave_most_of_the_time_to_others() -> None:
    """However many stand in line, the loop works for them a quarter of its time at most."""
    line, turns = Line(), list[str]()
    began, worked = time.perf_counter(), 0.0
    for number in range(20):
        line.join(Stream(str(number), turns, wanted=5, cost=0.001))
    await _served(line, turns, 100)
    worked = 100 * 0.001
    assert time.perf_counter() - began >= 3 * worked


async def test_one_that_fails_holds_up_nobody() -> None:
    """An error in one stream's turn is the event loop's to report; the others get theirs."""
    line, turns = Line(), list[str]()
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))

    class Broken(Stream):
        def take_turn(self) -> bool:
            raise RuntimeError("a fault")

    line.join(Broken("broken", turns, wanted=1))
    line.join(Stream("whole", turns, wanted=2))
    await _served(line, turns, 2)
    assert [str(context["exception"]) for context in errors] == ["a fault"]


def test_bulk_costs_nothing_and_what_was_used_is_paid_for_in_time() -> None:
    """Bytes in bulk do not overdraw an account; work without bytes does, until its share has made up for it."""
    account, now = Account(), time.perf_counter()
    account.charge(now - 0.001, 1024 * 1024, is_behind=False)
    assert account.paid <= now
    for _ in range(20):
        account.charge(time.perf_counter() - 0.002, 1, is_behind=False)
    assert account.paid > time.perf_counter()
    assert account.paid <= time.perf_counter() + 20 * 0.003 / SHARE
