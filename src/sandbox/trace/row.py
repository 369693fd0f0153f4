"""The lines of a waterfall: which spans are shown, how deep, and which share a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sandbox.trace.span import Node, Span, Track, tree

PLACES: Mapping[Track, str] = {
    "host": "host",
    "qemu": "QEMU",
    "monitor": "QEMU",
    "boot": "guest",
    "agent": "guest",
    "program": "guest",
}


@dataclass(frozen=True)
class Row:
    """One line: a span, or several short ones of one track."""

    name: str
    depth: int
    spans: tuple[Span, ...]

    @property
    def place(self) -> str:
        """Where it happens, in a word."""
        return PLACES[self.spans[0].track]

    @property
    def begin(self) -> float:
        return self.spans[0].begin

    @property
    def end(self) -> float:
        return max(span.end for span in self.spans)

    @property
    def seconds(self) -> float:
        """How long it took, or all of them together, without what is between them."""
        return sum(span.seconds for span in self.spans)

    @property
    def is_shared(self) -> bool:
        return len(self.spans) > 1


def rows(spans: Iterable[Span], shortest: float) -> list[Row]:
    """Return the lines for all spans; those below one parent that are shorter than `shortest` seconds share one.

    What lies in a span without a line of its own has none either.
    """
    return [row for root in tree(spans) for row in _rows(root, 0, shortest)]


def _rows(node: Node, depth: int, shortest: float) -> Iterator[Row]:
    yield Row(node.span.name, depth, (node.span,))
    short: dict[Track, list[Span]] = {}
    for child in node.children:
        if child.span.seconds < shortest:
            short.setdefault(child.span.track, []).append(child.span)
    for child in node.children:
        together = short.get(child.span.track, [])
        if len(together) < 2 or child.span not in together:
            yield from _rows(child, depth + 1, shortest)
        elif child.span is together[0]:
            kind = "commands of the monitor" if child.span.track == "monitor" else "short stages"
            yield Row(f"{len(together)} {kind}", depth + 1, tuple(together))
