"""Calls that must not hang: the test that makes one fails instead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
SECONDS = 10.0


def in_time(function: Callable[[], T]) -> T:
    """Call it in a thread that is left behind if it hangs."""
    answers: list[T] = []
    thread = threading.Thread(target=lambda: answers.append(function()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert answers, "it hangs, or has raised"
    return answers[0]
