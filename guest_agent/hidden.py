"""Functions that Python does not show: in no trace, stack or warning of the code that they run.

A frame that has not come to its first `RESUME` instruction is incomplete for CPython, and is left out wherever frames
are listed. A function without that instruction is always so. Where an interpreter has another idea of it, such a
function works all the same and is only seen.
"""

import opcode

_RESUME, _NOP = opcode.opmap.get("RESUME"), opcode.opmap["NOP"]


def hidden(function):
    """Return the function, changed so that its frames are not shown."""
    code = bytearray(function.__code__.co_code)
    for start in range(0, len(code), 2):
        if code[start] == _RESUME:
            code[start : start + 2] = bytes((_NOP, 0))
            break
    function.__code__ = function.__code__.replace(co_code=bytes(code))
    return function
