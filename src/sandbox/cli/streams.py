"""Our own standard streams and terminal, never blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import anyio

from sandbox.guest.events import StreamName

_PIPE_BYTES = 4096
DEFAULT_SIZE = (24, 80)


async def standard_input() -> AsyncIterator[bytes]:
    """Yield our standard input as it comes; end where it ends or is closed."""
    if sys.stdin is None:  # we were started without one: descriptor 0 is somebody else's by now
        return
    while True:
        try:
            await anyio.wait_readable(0)
        except PermissionError:  # a regular file or /dev/null: always readable, and the poller will not have it
            pass
        except (OSError, ValueError):  # closed
            return
        try:
            data = os.read(0, 64 * 1024)
        except OSError:  # a terminal that was hung up
            return
        if not data:
            return
        yield data


async def pass_on(stream: StreamName, data: bytes) -> None:
    """Write guest output without ever blocking the event loop, so that time-outs and Ctrl-C work while nobody reads."""
    descriptor = 1 if stream == "stdout" else 2
    view = memoryview(data)
    while view:
        piece = view
        try:
            await anyio.wait_writable(descriptor)
            piece = view[:_PIPE_BYTES]  # a pipe that polls as writable takes so much without blocking
        except PermissionError:  # a regular file
            pass
        view = view[os.write(descriptor, piece) :]


def is_interactive() -> bool:
    """Whether somebody sits at a terminal, for input and for output."""
    return sys.stdin is not None and sys.stdout is not None and os.isatty(0) and os.isatty(1)


def terminal_size() -> tuple[int, int]:
    """Return rows and columns of our terminal; 24 and 80 where there is none."""
    try:
        columns, rows = os.get_terminal_size(1)
    except OSError:
        return DEFAULT_SIZE
    return (rows, columns) if rows and columns else DEFAULT_SIZE


@contextmanager
def raw_terminal(on_resize: Callable[[int, int], None]) -> Iterator[None]:
    """Pass every key to the guest for the length of the context; restore the terminal whatever happens.

    `on_resize` gets rows and columns when our terminal changes. Without a terminal this does nothing.
    """
    if not is_interactive():
        yield
        return
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(0)
    tty.setraw(0)
    loop.add_signal_handler(signal.SIGWINCH, lambda: on_resize(*terminal_size()))
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        termios.tcsetattr(0, termios.TCSADRAIN, before)
