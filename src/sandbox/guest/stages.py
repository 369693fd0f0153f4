"""What a conversation with a guest tells to a trace: the stages of a handshake and of an execution, on both sides."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandbox.guest.ending import Stamps
from sandbox.trace.stage import recorder

if TYPE_CHECKING:
    from sandbox.trace.recorder import Recorder

Era = tuple[str, int]
"""A machine's name, and how often its clock was set."""


def tell_handshake(era: Era, asked: float, heard: float, told_ns: int, ready_ns: int) -> None:
    """Take the times of one HELLO and READY, if a trace is being made.

    The guest's clock was set to `told_ns` and showed `ready_ns` in READY. So the guest's part costs nothing: it is made
    of what READY tells in any case.
    """
    if (trace := recorder.get()) is None:
        return
    stages = [("wake, take HELLO and its entropy", told_ns / 1e9), ("set the names, prove them", ready_ns / 1e9)]
    trace.add_exchange(era, asked, heard, stages)


class ExecutionStages:
    """The stages of one execution, as far as it has come. The guest stamps its own because START asks for it."""

    def __init__(self, trace: Recorder, era: Era) -> None:
        self._trace = trace
        self._era = era
        self._begun = self._sent = self._latest = time.monotonic()
        self._doing = "START, until STARTED"
        self._has_output = False

    @classmethod
    def if_wanted(cls, era: Era) -> ExecutionStages | None:
        """Return them if a trace is being made, else None."""
        trace = recorder.get()
        return None if trace is None else cls(trace, era)

    def sent(self) -> None:
        """START was sent."""
        self._latest = self._sent = time.monotonic()
        self._trace.add("make and send START", self._begun, self._sent)

    def started(self) -> None:
        """STARTED came."""
        self._turn("the program runs")

    def output(self) -> None:
        """Output came."""
        if not self._has_output:
            self._has_output = True
            self._turn("the program runs on", "until the first output")

    def ended(self, stamps: Stamps | None) -> None:
        """The end came, with the guest's stamps if it has any."""
        self._turn("hand the result over")
        if stamps is None:
            return
        ended, second, add = self._latest, 1e9, self._trace.add_exchange
        handed, dead = stamps.handed / second, stamps.dead / second
        agent = [("take START", stamps.received / second), ("read it, hand it to a child", handed)]
        add(self._era, self._sent, ended, agent)
        if stamps.read is not None and stamps.dropped is not None and stamps.begun is not None:
            program = [
                ("wake, read the request", stamps.read / second),
                ("become the user", stamps.dropped / second),
                ("load the program", stamps.begun / second),
                ("run, until it is reaped", dead),
            ]
        else:
            program = [("run, until it is reaped", dead)]
        add(self._era, self._sent, ended, program, track="program", begin=handed)
        add(self._era, self._sent, ended, [("forward the rest, tell the end", stamps.told / second)], begin=dead)

    def reported(self) -> None:
        """Whoever waited has the result."""
        if self._doing:
            self._turn("")

    def _turn(self, doing: str, name: str = "") -> None:
        """End what was going on until now, and go on with something else."""
        now = time.monotonic()
        self._trace.add(name or self._doing, self._latest, now)
        self._latest, self._doing = now, doing
