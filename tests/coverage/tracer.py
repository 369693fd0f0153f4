"""Notes which line follows which in the agent's files. It is in the image of a coverage run, and in no other.

The notes are in a table that all processes of the guest share, in a file that each of them maps: a child writes there
without a descriptor and without rights, and nothing is lost when a process is killed.
"""

from __future__ import annotations

import mmap
import opcode
import os
import struct
import sys

TYPE_CHECKING = False  # `typing` would be a module that no program in the guest should find loaded
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType
    from typing import Any

TABLE = "/dev/coverage"
SLOTS = 1 << 14
LINES = 1 << 10
"""Line numbers are below this. The negative of a function's first line stands for its call and its return."""
_SLOT = struct.Struct("=I")
_BYTES = SLOTS * _SLOT.size
_SPREAD = 2654435761
_RESUME = opcode.opmap["RESUME"]

_numbers: dict[str, int] = {}
_seen: set[int] = set()
_table = memoryview(bytearray(_BYTES)).cast("I")


def encode(number: int, line: int, following: int) -> int:
    """Return what is noted for two lines of a file, run one after the other. It is never 0."""
    return number + 1 << 22 | line + LINES << 11 | following + LINES


def decode(table: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield what was noted: number of the file, line, following line."""
    for (arc,) in _SLOT.iter_unpack(table):
        if arc:
            yield (arc >> 22) - 1, (arc >> 11 & 0x7FF) - LINES, (arc & 0x7FF) - LINES


def begin(home: str) -> None:
    """From now on, trace the agent's functions in this process and its forks, those too that run already."""
    global _table  # noqa: PLW0603 - one process, one table
    fd = os.open(TABLE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if os.fstat(fd).st_size != _BYTES:
        os.fchmod(fd, 0o666)
        os.ftruncate(fd, _BYTES)
    _table = memoryview(mmap.mmap(fd, _BYTES)).cast("I")
    os.close(fd)
    names = sorted(name for name in os.listdir(home) if name.endswith(".py"))  # noqa: PTH208 - no more modules
    _numbers.update({f"{home}/{name}": number for number, name in enumerate(names)})
    sys.settrace(_on_call)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        frame.f_trace = _on_call(frame, "call", None)
        frame = frame.f_back


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function so that what it runs, a user's code, finds no trace function and none of our frames."""
    from hidden import hidden  # type: ignore[import-not-found] # the agent's

    def call(*arguments: Any) -> Any:
        sys.settrace(None)
        try:
            return function(*arguments)
        finally:
            sys.settrace(_on_call)

    return hidden(call)  # type: ignore[no-any-return]


def _note(number: int, line: int, following: int) -> None:
    arc = encode(number, line, following)
    if arc in _seen:
        return
    _seen.add(arc)
    slot = arc * _SPREAD % SLOTS
    while (there := _table[slot]) != arc:
        if not there:
            _table[slot] = arc
            return
        slot = (slot + 1) % SLOTS


def _on_call(frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
    code = frame.f_code
    number = _numbers.get(code.co_filename)
    if number is None:
        return None
    entry = -code.co_firstlineno
    last = frame.f_lineno if _is_inside(code, frame.f_lasti) else entry

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
        nonlocal last
        if event == "line":
            _note(number, last, frame.f_lineno)
            last = frame.f_lineno
        elif event == "return" and not _is_resumable(code, frame.f_lasti):
            _note(number, last, entry)
        return trace

    return trace


def _is_inside(code: CodeType, offset: int) -> bool:
    """Return whether a frame is not at its begin: a generator that goes on, or a function that runs already."""
    return offset >= 0 and not (code.co_code[offset] == _RESUME and code.co_code[offset + 1] == 0)


def _is_resumable(code: CodeType, offset: int) -> bool:
    """Return whether a frame was left at this offset by a `yield` or an `await`, which RESUME follows.

    Since Python 3.13 the offset is that of RESUME itself.
    """
    return _RESUME in (*code.co_code[offset : offset + 1], *code.co_code[offset + 2 : offset + 3])
