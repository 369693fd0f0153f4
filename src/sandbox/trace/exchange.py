"""From the guest's time stamps to spans on the host's clock.

Each exchange is something that was sent to the guest, what the guest stamped on the way, and its answer. The guest's
clock is set by the handshake, to within what the way there and the guest's work take. Of all exchanges since, the one
whose answer seems to have come fastest is taken to have come in no time: this is the offset of the two clocks, and no
stamp can be placed later than it was heard of. Stages of the guest are then too late by that one answer's way at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sandbox.trace.span import Span, Track


class GuestStage(NamedTuple):
    """Something in the guest that ended at `end`, in seconds of its own clock, and began when the one before ended."""

    name: str
    end: float


@dataclass(frozen=True)
class Exchange:
    """One question to the guest: when it was sent and answered on the host's clock, and what the guest did meanwhile.

    `era` tells the machine, and the setting of its clock, that the stamps are of.
    """

    sent: float
    answered: float
    stages: tuple[GuestStage, ...]
    track: Track = "agent"
    era: tuple[str, int] = ("", 0)
    begin: float | None = None
    """When the first stage began, by the guest's clock; by default when the question was sent."""


def placed(exchanges: Iterable[Exchange]) -> list[Span]:
    """Return the guest's stages as spans on the host's clock, each within its own exchange, whatever the guest says."""
    exchanges = [exchange for exchange in exchanges if exchange.stages]
    offsets: Mapping[tuple[str, int], float] = {
        era: min(each.answered - each.stages[-1].end for each in exchanges if each.era == era)
        for era in {exchange.era for exchange in exchanges}
    }
    return [span for exchange in exchanges for span in _place(exchange, offsets[exchange.era])]


def _place(exchange: Exchange, offset: float) -> list[Span]:
    spans = []
    begin = exchange.sent if exchange.begin is None else exchange.begin + offset
    for stage in exchange.stages:
        end = max(begin, stage.end + offset)
        spans.append(Span(stage.name, begin, end, exchange.track).within(exchange.sent, exchange.answered))
        begin = end
    return spans
