"""The languages that have a persistent interpreter: how each is started, asked and interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sandbox.errors import ConfigError
from sandbox.guest.request import Request
from sandbox.message import JSON_BYTES, encode_json

_HEADER_BYTES = 100
_LOOP = r"""
__stop='((${#BASH_SOURCE[@]})) && return 130'
__on_interrupt='((${#BASH_SOURCE[@]})) && { __stopped=1; set -T; trap "$__stop" DEBUG; return 130; }'
__stopped=
trap : INT
while IFS= read -r -d '' -u 3 __number && IFS= read -r -d '' -u 3 __code; do
    [[ $__number ]] || continue
    trap "$__on_interrupt" INT
    if read -t 0 -u 3; then
        __code=130
    else
        source /dev/fd/5 3<&- 4>&- 5<<<'eval "$__code" 5<&-'
        __code=$?
    fi
    if [[ $__stopped ]]; then
        trap - DEBUG
        set +T
        __stopped=
    fi
    trap : INT
    printf -v __code '{"number":%d,"status":%d}' "$__number" "$__code"
    printf -v __number '%03o' "${#__code}"
    printf '\0\0\0\'"$__number"'\1%s' "$__code" >&4
done
"""
"""Takes a number and code, each ended by NUL, and answers with a message: three bytes of its length are always 0.

The code is evaluated inside of something sourced, because `return` in a trap leaves what is sourced: so an interrupt
ends the whole cell, and not only the command that runs. The trap on DEBUG does the same for functions on the way out.
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


def _for_bash(code: str) -> bytes:
    if "\0" in code:
        raise ConfigError("the code holds a NUL byte, which bash cannot take")
    try:
        return code.encode("utf-8", "surrogateescape") + b"\0"
    except UnicodeEncodeError as error:
        raise ConfigError(f"the code holds a character that no text has: {error}") from error
