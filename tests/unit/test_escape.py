"""The way out of a shell, key by key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cli.escape import Escape, Left


@pytest.mark.parametrize("typed", [b"~.", b"\r~.", b"ls\r~.", b"x\n~.", b"~~\r~."])
def test_enter_tilde_dot_leaves(typed: bytes) -> None:
    """However it is cut into pieces."""
    escape = Escape()
    for index in range(len(typed) - 1):
        escape.pass_through(typed[index : index + 1])
    with pytest.raises(Left):
        escape.pass_through(typed[-1:])
    with pytest.raises(Left):
        Escape().pass_through(typed)


@pytest.mark.parametrize(
    ("typed", "passed"),
    [(b"a~.", b"a~."), (b"cd ~\r", b"cd ~\r"), (b"~/x", b"~/x"), (b"~~.", b"~."), (b"..\r.", b"..\r.")],
)
def test_everything_else_is_for_the_guest(typed: bytes, passed: bytes) -> None:
    """A tilde is special at the beginning of a line only, and two of them there are one."""
    assert Escape().pass_through(typed) == passed


@given(st.lists(st.binary(max_size=6).filter(lambda data: b"~" not in data)))
def test_other_bytes_are_never_changed(pieces: list[bytes]) -> None:
    """Whatever is typed without a tilde arrives as it was typed."""
    escape = Escape()
    assert b"".join(escape.pass_through(piece) for piece in pieces) == b"".join(pieces)
