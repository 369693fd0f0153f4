"""The whole terminal for a live view: the screen behind it and its modes come back, however it ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from rich.console import Console, RenderableType

_ENTER, _LEAVE, _HOME, _CLEAR_REST = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[J"
_CLEAR_LINE = "\x1b[K"
_SUSPEND = "\x1a"
_LOCAL, _SPECIAL = 3, 6
"""Where `termios` has local modes and special characters."""
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_CAUGHT = (*_ENDING, signal.SIGWINCH, signal.SIGTSTP)


class Screen:
    """Takes over the terminal at standard input and output for the length of the context.

    `show` draws; a change of size draws again. Ctrl-C is the key `\\x03`, Ctrl-Z stops us with the terminal as it was,
    and SIGTERM and SIGHUP end the process as they do, but after the terminal is restored.
    """

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, force_terminal=True, legacy_windows=False)
        self._draw: Callable[[int], RenderableType] = lambda _: ""
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> Screen:
        self._modes = termios.tcgetattr(0)
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # CPython writes their numbers as they come: a handler would be too late between the last look and a wait.
        self._woken_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _CAUGHT:
            self._handlers[number] = signal.signal(number, lambda *_: None)
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._woken_before)
        os.close(self._reader)
        os.close(self._writer)

    def show(self, draw: Callable[[int], RenderableType]) -> None:
        """Draw what `draw` returns for so many rows, and draw it anew when the terminal's size changes."""
        self._draw = draw
        self._redraw()

    def wait_key(self, seconds: float) -> str:
        """Return the key that was pressed, or an empty string after so many seconds."""
        ready, _, _ = select.select([0, self._reader], [], [], seconds)
        if self._reader in ready:
            return self._obey(os.read(self._reader, 4096))
        if 0 not in ready:
            return ""
        key = os.read(0, 1).decode(errors="replace")
        if key == _SUSPEND:
            self._stop()
            return ""
        return key or "q"  # no more keys will come: the terminal is gone

    def _obey(self, caught: bytes) -> str:
        """Do what signals have asked for since the last time, each of them one byte."""
        if signal.SIGINT in caught:
            return "\x03"
        for number in (signal.SIGTERM, signal.SIGHUP):
            if number in caught:
                raise SystemExit(128 + number)
        if signal.SIGTSTP in caught:
            self._stop()
        self._redraw()
        return ""

    def _stop(self) -> None:
        """Stop until the shell lets us go on; the terminal is the shell's meanwhile."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._modes = termios.tcgetattr(0)  # the shell may have changed them meanwhile
        self._take()
        self._redraw()

    def _redraw(self) -> None:
        columns, rows = os.get_terminal_size(1)
        self._console.size = (columns or 80, rows or 24)
        with self._console.capture() as capture:
            self._console.print(self._draw(self._console.height), no_wrap=True, crop=True)
        lines = capture.get().rstrip("\n").split("\n")[: self._console.height]
        self._write(_HOME + f"{_CLEAR_LINE}\n".join(lines) + _CLEAR_LINE + _CLEAR_REST)

    def _take(self) -> None:
        modes = termios.tcgetattr(0)
        # Keys that would be signals are keys: the kernel throws away output along with such a signal, ours at the end.
        modes[_LOCAL] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
        modes[_SPECIAL][termios.VMIN], modes[_SPECIAL][termios.VTIME] = 1, 0
        termios.tcsetattr(0, termios.TCSANOW, modes)
        self._write(_ENTER)

    def _give_back(self) -> None:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(0, termios.TCSANOW, self._modes)
        with suppress(OSError):
            self._write(_LEAVE)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
