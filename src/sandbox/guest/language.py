"""The languages that have a persistent interpreter: how each is started, asked and interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sandbox.errors import ConfigError
from sandbox.guest.answers import CELL, STATUS, Bound
from sandbox.guest.request import Request
from sandbox.message import JSON_BYTES, encode_json

_HEADER_BYTES = 100
_LOOP = r"""
exec 10<&3 11>&4 3<&- 4>&-
__early= __stopped=
__stop='((${#BASH_SOURCE[@]})) && return 130'
__on_interrupt='__early=1; ((${#BASH_SOURCE[@]})) && { __stopped=1; set -T; trap "$__stop" DEBUG; return 130; }'
trap : INT
printf '\0\0\0\027\1{"number":0,"status":0}' >&11
while { IFS= builtin read -r -d '' -u 10 __number && IFS= builtin read -r -d '' -u 10 __code; } 2>/dev/null; do
    {
        [[ $__number ]] || continue
        __early=
        builtin trap "$__on_interrupt" INT
        builtin read -t 0 -u 10 && __early=1
    } 2>/dev/null
    builtin source /dev/fd/12 10<&- 11>&- 12<<<'[[ $__early ]] && return 130; eval "$__code" 12<&-'
    {
        __code=$?
        if [[ $__stopped ]]; then
            builtin trap - DEBUG
            builtin set +T
            __stopped=
        fi
        builtin trap : INT
        builtin printf -v __code '{"number":%d,"status":%d}' "$__number" "$__code"
        builtin printf -v __number '%03o' "${#__code}"
        builtin printf '\0\0\0\'"$__number"'\1%s' "$__code" >&11
    } 2>/dev/null
done
"""
"""Takes a number and code, each ended by NUL, and answers with a message: three bytes of its length are always 0.

The code is evaluated inside of something sourced, because `return` in a trap leaves what is sourced: so an interrupt
ends the whole cell, and not only the command that runs. The trap on DEBUG does the same for functions on the way out.
An answer to cell 0 comes first: before, an interrupt would end bash itself.
"""


def start_request(language: str, fields: Mapping[str, Any]) -> Request:
    """Return the request that starts an interpreter."""
    if language == "python":
        return Request("interpreter", {}, is_server=True, keep_bytes=0, **fields)
    if language == "bash":
        return Request("argv", {"argv": ["bash", "--norc", "-c", _LOOP]}, is_server=True, keep_bytes=0, **fields)
    raise ConfigError(f"there is no persistent context for {language!r}; there are python and bash")


def cell_request(language: str, code: str) -> Callable[[int], bytes]:
    """Return what makes the request of a numbered cell; raise `ConfigError` if the code cannot be sent."""
    if language == "bash":
        data = _for_bash(code)
        return lambda number: b"%d\0" % number + data
    if len(encode_json({"code": code})) > JSON_BYTES - _HEADER_BYTES:
        raise ConfigError(f"the code makes more than {JSON_BYTES} bytes; put large data into a file")
    return lambda number: encode_json({"number": number, "code": code})


def interruption(language: str, number: int) -> bytes:
    """Return what says, behind a request, that its cell is not to begin; after its end it is skipped."""
    return b"\0\0" if language == "bash" else encode_json({"interrupt": number})


def answer_bound(language: str) -> Bound:
    """Return the largest answer to a cell."""
    return STATUS if language == "bash" else CELL


def is_up_at_once(language: str) -> bool:
    """Return whether an interpreter may be interrupted from its start; else it says so with an answer to cell 0."""
    return language != "bash"


def _for_bash(code: str) -> bytes:
    if "\0" in code:
        raise ConfigError("the code holds a NUL byte, which bash cannot take")
    return code.encode("utf-8", "surrogateescape") + b"\0"
