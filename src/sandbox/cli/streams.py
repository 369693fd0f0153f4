"""Our own standard streams and terminal, never blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import anyio

from sandbox.errors import HostFileError
from sandbox.guest.events import StreamName

_PIPE_BYTES = 4096
_FULL_SECONDS = 0.01
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
        except BlockingIOError:  # somebody else who shares it was faster
            continue
        except OSError:  # a terminal that was hung up
            return
        if not data:
            return
        yield data


async def pass_on(stream: StreamName, data: bytes) -> None:
    """Write guest output without ever blocking the event loop, so that time-outs and Ctrl-C work while nobody reads."""
    descriptor = _unblocked(1 if stream == "stdout" else 2)
    view = memoryview(data)
    while view:
        piece = view
        try:
            await anyio.wait_writable(descriptor)
            piece = view[:_PIPE_BYTES]  # a pipe that polls as writable takes so much without blocking
        except PermissionError:  # a regular file
            pass
        try:
            view = view[os.write(descriptor, piece) :]
        except BlockingIOError:  # a terminal with room for one byte polls as writable, and does not take a line's end
            await anyio.sleep(_FULL_SECONDS)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise HostFileError(error.errno, f"our {stream} cannot be written: {error.strerror}") from error


@cache
def _unblocked(descriptor: int) -> int:
    """Return a descriptor of our own for a terminal: it polls as writable when it takes less than a piece.

    Its flags are not shared, as those of the descriptor that we were given are, with the shell that started us.
    """
    if not os.isatty(descriptor):
        return descriptor
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # a terminal that belongs to another user, after `su`
        return descriptor


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

    def resume() -> None:
        with suppress(termios.error):
            tty.setraw(0, termios.TCSANOW)  # what was typed ahead stays
        on_resize(*terminal_size())

    loop.add_signal_handler(signal.SIGWINCH, lambda: on_resize(*terminal_size()))
    loop.add_signal_handler(signal.SIGCONT, resume)  # after a stop the shell has set the modes that it likes
    try:
        tty.setraw(0, termios.TCSANOW)
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        loop.remove_signal_handler(signal.SIGCONT)
        with suppress(termios.error):  # it was hung up
            termios.tcflush(0, termios.TCIFLUSH)  # what was meant for the guest must not run on the host
            termios.tcsetattr(0, termios.TCSANOW, before)
