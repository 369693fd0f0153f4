"""The guest's part of a boot, from what it has said on its console, and from its kernel's log.

Firmware, init and agent say on the console how far they have come, and the host hears that at once. The kernel is
left quiet, since its lines on an emulated console would make the boot longer; its log is read when the guest is ready.
What init and agent say is in that log, too: of all that was both heard and logged, what was heard soonest is taken to
have come in no time, and this is the offset of the two clocks. All of it is the guest's word: whatever it says, stages
follow one another and lines lie within their stage.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sandbox.printable import printable
from sandbox.trace.heard import Heard
from sandbox.trace.kernel_log import LogLine
from sandbox.trace.span import Span

STAGES = {
    "init": "mount proc, sys and dev",
    "modules": "load the modules",
    "root": "mount the root",
    "python": "Python starts",
    "import": "the agent is loaded",
    "agent": "the agent starts",
}
"""What has ended when init or agent tells one of these words, in order; each begins when the one before has ended."""
_OF_THE_KERNEL = ("kernel", STAGES["modules"], STAGES["root"])
"""Here it is the kernel that works, and its lines say at what; in others they come from beside."""
_BOOTED = b"Booting from ROM.."
_TELLS = "sandbox-boot: "
_INIT = "Run /init as init process"
_NOTABLE = 0.001
_LONGEST_NAME = 200


class Boot:
    """One machine that boots: what it has told so far."""

    def __init__(self, machine: str, started: float) -> None:
        """`started` is when the host had it running, at the latest."""
        self.machine = machine
        self.started = started
        self.heard = Heard()
        self.log: Sequence[LogLine] = ()

    def hear(self, data: bytes) -> None:
        """Take what has come from the machine's console just now."""
        self.heard.take(data, time.monotonic())

    @property
    def up(self) -> float | None:
        """When its agent was there to hear the host; None if that is not known."""
        return self.heard.when(_told("agent").encode())

    def spans(self, begin: float) -> list[Span]:
        """Return its stages on the host's monotonic clock, as far as it has come; processors ran from `begin` on."""
        ended = self._ended()
        spans, latest = [], begin
        for name, end in ended.items():
            span = Span(name, latest, max(latest, min(end, self.heard.latest)), "boot")
            spans.append(span)
            if name in _OF_THE_KERNEL:
                spans += [line.within(span.begin, span.end) for line in self._lines(span, name == "kernel")]
            latest = span.end
        return spans

    def _ended(self) -> dict[str, float]:
        """Return when each stage has ended."""
        ended = {"firmware": self.heard.when(_BOOTED), "kernel": self._placed(_INIT)}
        for word, name in STAGES.items():
            told = _told(word)
            placed = self._placed(told)
            ended[name] = self.heard.when(told.encode()) if placed is None else placed
        return {name: end for name, end in ended.items() if end is not None}

    def _placed(self, text: str) -> float | None:
        """Return when a line came into the log, by the host's clock."""
        offset = self._offset()
        at = next((line.at for line in self.log if line.text == text), None)
        return None if offset is None or at is None else at + offset

    def _offset(self) -> float | None:
        """Return how far the host's clock is ahead of the log's."""
        logged = {line.text: line.at for line in reversed(self.log)}
        told = [_told(word) for word in STAGES]
        pairs = [(self.heard.when(text.encode()), logged[text]) for text in told if text in logged]
        return min((heard - at for heard, at in pairs if heard is not None), default=None)

    def _lines(self, within: Span, is_kernel: bool) -> list[Span]:
        """Return what was done until each line that came long after the one before it."""
        offset = self._offset()
        if offset is None:
            return []
        spans, latest = [], within.begin
        if is_kernel and latest < offset:
            spans.append(Span("until its clock runs", latest, offset, "boot"))
            latest = offset
        for line in self.log:
            at = line.at + offset
            if within.begin <= at <= within.end:
                if at - latest >= _NOTABLE and not line.text.startswith(_TELLS):
                    spans.append(Span(_name(line.text), latest, at, "boot"))
                latest = max(latest, at)
        return spans


def _told(word: str) -> str:
    return _TELLS + word


def _name(text: str) -> str:
    """Return a line of the guest's as a name."""
    return printable(text.strip(), _LONGEST_NAME) or "?"
