"""Spans: named stretches of time on the host's monotonic clock, and the tree that they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

Track = Literal["host", "qemu", "monitor", "boot", "agent", "program"]
"""Where something happens: this process, QEMU, commands of its monitor; a guest's boot, its agent, a program in it."""
TRACKS: tuple[Track, ...] = get_args(Track)


@dataclass(frozen=True, slots=True)
class Span:
    """Something that lasted from `begin` to `end`, in seconds of `time.monotonic` on the host."""

    name: str
    begin: float
    end: float
    track: Track = "host"

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def contains(self, other: Span) -> bool:
        """Whether the other lies within this one, be it as long."""
        return self.begin <= other.begin and other.end <= self.end

    def within(self, begin: float, end: float) -> Span:
        """Return what of it lies in these bounds; what lies outside becomes a point at the nearer bound."""
        low = min(max(self.begin, begin), end)
        return Span(self.name, low, max(low, min(self.end, end)), self.track)


@dataclass(slots=True)
class Node:
    """A span with those that lie within it, in order of their begin."""

    span: Span
    children: list[Node] = field(default_factory=list)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Span]]:
        """Give this span and all within it, with how deep each lies."""
        yield depth, self.span
        for child in self.children:
            yield from child.walk(depth + 1)


def tree(spans: Iterable[Span]) -> list[Node]:
    """Arrange spans by containment; return those that lie in no other.

    A span of the host lies in spans of the host only. One of QEMU or of the guest lies in the shortest of its own
    track that contains it, or else in the shortest of the host.
    """
    nodes = [Node(span) for span in sorted(spans, key=lambda span: (span.begin, -span.end))]
    roots: list[Node] = []
    for index, node in enumerate(nodes):
        earlier = nodes[:index]  # whoever contains it began before it, or is longer
        parent = _closest(node, [other for other in earlier if other.span.track == node.span.track])
        if parent is None and node.span.track != "host":
            hosts = [other for other in nodes if other.span.track == "host"]
            parent = _closest(node, hosts)
        (roots if parent is None else parent.children).append(node)
    return roots


def _closest(node: Node, others: list[Node]) -> Node | None:
    around = [other for other in others if other.span.contains(node.span)]
    # Of spans that are equally long, the later one in order lies within the earlier one.
    return min(reversed(around), key=lambda other: other.span.seconds, default=None)
