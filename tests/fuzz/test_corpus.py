"""What the fuzzer has found worth keeping is read again by every test run, without the fuzzer."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sandbox.guest.ending import End
from sandbox.wire import GUEST_LIMITS, Decoder, FrameError, Kind, decode_json
from tests.fuzz.target import _pieces, check

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(CORPUS.iterdir())


def test_corpus_is_small_and_not_empty() -> None:
    """Enough to reach what the fuzzer has reached, little enough for a repository."""
    assert 0 < len(INPUTS) < 400
    assert sum(path.stat().st_size for path in INPUTS) < 500_000


def test_some_inputs_are_honest() -> None:
    """A corpus whose every end is refused would no longer reach what lies behind an end."""
    honest = 0
    for path in INPUTS:
        decoder = Decoder(GUEST_LIMITS)
        for piece in _pieces(path.read_bytes()):
            try:
                ends = [frame for frame in decoder.feed(piece) if frame.kind is Kind.EXITED]
                honest += sum(End.model_validate(decode_json(frame.payload)) is not None for frame in ends)
            except (FrameError, ValidationError):
                break
    assert honest > 5


@pytest.mark.parametrize("path", INPUTS, ids=[path.name[:12] for path in INPUTS])
def test_input_breaks_no_promise(path: Path) -> None:
    """Only errors of ours, at once, in bounded memory."""
    check(path.read_bytes())
