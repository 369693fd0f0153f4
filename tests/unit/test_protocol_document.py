"""The protocol is what `docs/protocol.md` says: templates of another build are judged by its version alone."""

from __future__ import annotations

import re
from pathlib import Path

from sandbox import wire
from sandbox.wire import GUEST_LIMITS, HEADER_BYTES, HOST_LIMITS, Kind

_PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
_UNITS = {"bytes": 1, "KiB": 1024, "MiB": 1024**2}


def _rows() -> list[tuple[str, int, str, int]]:
    """Return name, number, sender and limit of each kind of frame, as the page has them."""
    rows = []
    for names, numbers, sender, payload in re.findall(
        r"^\| ([A-Z_, ]+) \| ([\d, ]+) \| (\w+) \| (.*) \|$", _PAGE, re.M
    ):
        size = re.search(r"(\d+) (bytes|KiB|MiB)", payload)
        assert size or payload.startswith("empty"), f"the page does not say how long {names} may be"
        limit = int(size[1]) * _UNITS[size[2]] if size else 0
        pairs = zip(names.split(", "), numbers.split(", "), strict=True)
        rows += [(name, int(number), sender, limit) for name, number in pairs]
    return rows


def test_every_frame_has_the_number_sender_and_limit_of_the_page() -> None:
    """Whoever changes one changes the version and the page."""
    limits = [("host", HOST_LIMITS), ("guest", GUEST_LIMITS)]
    ours = [(Kind(kind).name, int(kind), sender, limit) for sender, known in limits for kind, limit in known.items()]
    assert ours == _rows()
    assert len(ours) == len(Kind)


def test_version_windows_and_layouts_are_those_of_the_page() -> None:
    """Sizes that both ends must agree on."""
    assert f"This page describes protocol version {wire.PROTOCOL_VERSION}." in _PAGE
    assert f"A frame is a header of {HEADER_BYTES} bytes and a payload." in _PAGE
    assert f"HELLO carries {wire.ENTROPY_BYTES} bytes of entropy" in _PAGE
    assert f"identity, clock and entropy: exactly {wire.HELLO.size} bytes" in _PAGE
    assert f"the answer to HELLO: exactly {wire.READY.size} bytes" in _PAGE
    assert f"Each stream of an execution has a window of {wire.WINDOW_BYTES // 1024} KiB." in _PAGE
    assert f"in portions of at least {wire.GRANT_BYTES // 1024} KiB" in _PAGE
    assert (wire.WINDOW_BYTES, wire.GRANT_BYTES, wire.CHUNK_BYTES) == (262_144, 65_536, 65_536)
    assert (wire.NONCE_BYTES, wire.HOSTNAME_BYTES) == (16, 63)
