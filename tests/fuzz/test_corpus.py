"""What a fuzzer has found worth keeping, fed again: nothing but errors of ours may come of it."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.target import check

CORPUS = Path(__file__).parent / "corpus"


def test_corpus_harms_nobody() -> None:
    """Every input of the corpus is taken or refused in time, in bounded memory, without a surprise."""
    inputs = sorted(CORPUS.iterdir())
    assert len(inputs) >= 10
    for path in inputs:
        check(path.read_bytes())
