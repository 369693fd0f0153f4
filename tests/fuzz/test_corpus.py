"""What the fuzzer has found worth keeping is read again by every test run, without the fuzzer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.target import check

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(CORPUS.iterdir())


def test_corpus_is_small_and_not_empty() -> None:
    """Enough to reach what the fuzzer has reached, little enough for a repository."""
    assert 0 < len(INPUTS) < 400
    assert sum(path.stat().st_size for path in INPUTS) < 500_000


@pytest.mark.parametrize("path", INPUTS, ids=[path.name[:12] for path in INPUTS])
def test_input_breaks_no_promise(path: Path) -> None:
    """Only errors of ours, at once, in bounded memory."""
    check(path.read_bytes())
