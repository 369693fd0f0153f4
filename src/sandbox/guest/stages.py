"""What a conversation with a guest tells to a trace: the stages of a handshake and of an execution, on both sides."""

from __future__ import annotations

import time

from sandbox.guest.ending import Stamps
from sandbox.trace.exchange import Exchange, Stage
from sandbox.trace.recorder import Recorder, current

Era = tuple[str, int]
"""A machine's name, and how often its clock was set."""


def tell_handshake(era: Era, sent_ns: int, told_ns: int, answered_ns: int, ready_ns: int) -> None:
    """Take the times of one HELLO and READY, if a trace is being made.

    All are of wall clocks: the host's, but for `told_ns`, which the guest's clock was set to, and `ready_ns`, which it
    showed in READY. So the guest's part costs nothing: it is made of what READY tells in any case.
    """
    if (trace := current()) is None:
        return
    stages = (
        Stage("wake, take HELLO and its entropy", told_ns / 1e9),
        Stage("set the names, prove them", ready_ns / 1e9),
    )
    answered = time.monotonic()
    trace.exchanges.append(Exchange(answered - (answered_ns - sent_ns) / 1e9, answered, stages, era))


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
        trace = current()
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
        sent, ended, second = self._sent, self._latest, 1e9
        taken = stamps.received / second
        agent = [Stage("take START", taken), Stage("read it, hand it to a child", stamps.handed / second)]
        self._exchange(sent, ended, agent)
        if stamps.read is not None and stamps.begun is not None and stamps.dropped is not None:
            program = (
                Stage("wake, read the request", stamps.read / second, "program"),
                Stage("become the user", stamps.dropped / second, "program"),
                Stage("load the program", stamps.begun / second, "program"),
                Stage("run, until it is reaped", stamps.dead / second, "program"),
            )
            self._exchange(sent, ended, program, stamps.handed / second)
        self._exchange(
            sent, ended, [Stage("forward the rest, tell the end", stamps.told / second)], stamps.dead / second
        )

    def reported(self) -> None:
        """Whoever waited has the result."""
        if self._doing:
            self._turn("")

    def _turn(self, doing: str, name: str = "") -> None:
        """End what was going on until now, and go on with something else."""
        now = time.monotonic()
        self._trace.add(name or self._doing, self._latest, now)
        self._latest, self._doing = now, doing

    def _exchange(
        self, sent: float, answered: float, stages: list[Stage] | tuple[Stage, ...], begin: float | None = None
    ) -> None:
        self._trace.exchanges.append(Exchange(sent, answered, tuple(stages), self._era, begin))
