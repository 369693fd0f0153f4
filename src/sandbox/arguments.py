"""What callers pass to public methods: checked here, before anything is sent, and made one type of each kind.

Each function takes the argument's name and value, and returns the value as the library uses it or raises `ConfigError`.
Text may hold lone surrogates from U+DC80 to U+DCFF: they stand for bytes that are no text, as `os.fsdecode` gives them.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from sandbox.errors import ConfigError

T = TypeVar("T")
Data = bytes | bytearray | memoryview | str
"""Bytes; text stands for its UTF-8."""
GuestPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A path in the guest. Bytes that are no text are lone surrogates in a string, as `os.fsdecode` gives them."""
COUNT_MAX = 1 << 62
"""The largest number of bytes, or position in a file, that can be asked for."""
SECONDS_MAX = 1e9
"""Some 30 years; timers take no longer time."""
NAME_BYTES = 255
PATH_BYTES = 1024 * 1024
"""More than any path has; the guest's kernel refuses shorter ones itself."""
_PERMISSIONS = 0o7777


def _wrong(name: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"{name} is {_shown(value)}, a {type(value).__name__}; give {wanted}")


def _shown(value: object) -> str:
    """Return a value as far as a message has room for it, in characters that any terminal can show."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


def text(name: str, value: object) -> str:
    """Check text that can be sent: code, or what goes to a program."""
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    if not value.isascii():
        _encode(name, value)
    return value


def _encode(name: str, value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name} has the lone surrogate U+{ord(value[error.start]):04X} at position {error.start}, which no text "
            "has: a character was cut in two, or decoded wrongly; send whole characters"
        ) from error


def word(name: str, value: object) -> str:
    """Check text that the guest's kernel takes: without NUL."""
    checked = text(name, value)
    if "\0" in checked:
        raise ConfigError(f"{name} holds a NUL byte at position {checked.index(chr(0))}, which no program can take")
    return checked


def filled(name: str, value: object) -> str:
    """Check a word that is not empty: the name of something."""
    checked = word(name, value)
    if not checked:
        raise ConfigError(f"{name} is empty; give a name")
    if len(checked) > NAME_BYTES:
        raise ConfigError(f"{name} has {len(checked)} characters; give {NAME_BYTES} at most")
    return checked


def ident(name: str, value: object) -> str:
    """Check an id; an empty one stands for none."""
    return "" if value == "" else filled(name, value)


def script_name(name: str, value: object) -> str:
    """Check the name of a script's file; an empty one stands for the default."""
    checked = word(name, _plain_path(value))
    last = checked.rpartition("/")[2]
    if last in (".", "..") or len(_encode(name, last)) > NAME_BYTES:
        raise ConfigError(f"{name} ends in {_shown(last)}, which no file can be named; give a file name")
    return checked


def path(name: str, value: object) -> str:
    """Check a path in the guest: text, bytes, or what `os.fspath` takes."""
    checked = word(name, _plain_path(value))
    if not checked:
        raise ConfigError(f"{name} is empty, which no file can be named")
    if len(_encode(name, checked)) >= PATH_BYTES:
        raise ConfigError(f"{name} has {len(checked)} characters, which no path can have; give fewer than {PATH_BYTES}")
    return checked


def host_path(name: str, value: object) -> Path:
    """Check a path on this host."""
    return Path(path(name, value))


def _plain_path(value: object) -> object:
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    return os.fsdecode(found) if isinstance(found, bytes) else found


def words(name: str, value: object) -> list[str]:
    """Check arguments of a program: a sequence of words; paths and bytes are taken as such."""
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Sequence):
        raise _wrong(name, value, "a list of strings")
    return [word(f"{name}[{number}]", _plain_path(one)) for number, one in enumerate(value)]


def environment(name: str, value: object) -> dict[str, str]:
    """Check environment variables; None is none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "a mapping of strings to strings")
    return {_variable(name, key): word(f"{name}[{_shown(key)}]", _plain_path(value[key])) for key in value}


def _variable(name: str, key: object) -> str:
    checked = word(f"a name in {name}", key)
    if not checked or "=" in checked:
        raise ConfigError(f"environment variable name {_shown(checked)} is empty or holds '='")
    return checked


def _number(name: str, value: object, wanted: str) -> float:
    """Return a finite float; whole numbers are taken, too, but no `bool`."""
    if isinstance(value, bool):
        raise _wrong(name, value, wanted)
    try:
        found = value if isinstance(value, float) else float(index(cast("Any", value)))
    except (TypeError, OverflowError):
        raise _wrong(name, value, wanted) from None
    if not math.isfinite(found):
        raise _wrong(name, value, wanted)
    return found


def seconds(name: str, value: object) -> float:
    """Check a time that has to pass."""
    found = _number(name, value, "a positive number of seconds or None")
    if not 0 < found <= SECONDS_MAX:
        raise _wrong(name, value, f"a positive number of seconds, {SECONDS_MAX:g} at most, or None")
    return found


def patience(name: str, value: object) -> float:
    """Check a time to wait for, which may be none at all."""
    found = _number(name, value, "a number of seconds or None")
    if not 0 <= found <= SECONDS_MAX:
        raise _wrong(name, value, f"a number of seconds, 0 to {SECONDS_MAX:g}, or None")
    return found


def priority(name: str, value: object) -> float:
    """Check a rank: any whole number, or a fraction."""
    found = _number(name, value, "a number")
    if abs(found) > SECONDS_MAX:
        raise _wrong(name, value, f"a number, {SECONDS_MAX:g} at most")
    return found


def count(name: str, value: object, low: int = 0, high: int = COUNT_MAX) -> int:
    """Check a whole number."""
    if isinstance(value, bool):
        raise _wrong(name, value, "a whole number")
    try:
        found = index(cast("Any", value))
    except TypeError:
        raise _wrong(name, value, "a whole number") from None
    if not low <= found <= high:
        said = f"{low} or more" if high == COUNT_MAX else f"{low} to {high}"
        raise _wrong(name, value, f"a whole number, {said}")
    return found


def mode(name: str, value: object) -> int:
    """Check permission bits."""
    found = count(name, value, -COUNT_MAX)
    if not 0 <= found <= _PERMISSIONS:
        raise ConfigError(f"{name} is {found:#o}; give permission bits, 0 to {_PERMISSIONS:#o}")
    return found


def flag(name: str, value: object) -> bool:
    """Check a yes or no."""
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def terminal(name: str, value: object) -> tuple[int, int]:
    """Check rows and columns."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray) or len(value) != 2:
        raise _wrong(name, value, "rows and columns, a pair of numbers")
    try:
        rows, columns = (count(name, one, 1, 65535) for one in value)
    except ConfigError:
        said = f"{name}: a terminal of {_shown(value[0])} rows and {_shown(value[1])} columns cannot be"
        raise ConfigError(f"{said}; give 1 to 65535") from None
    return rows, columns


def data(name: str, value: object) -> bytes:
    """Check bytes; text is taken as UTF-8."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _encode(name, value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise _wrong(name, value, "bytes or a string")


def content(name: str, value: object) -> bytes | AsyncIterable[Data]:
    """Check bytes, or what gives them piece by piece."""
    if isinstance(value, AsyncIterable):
        return value
    if isinstance(value, bytes | str | bytearray | memoryview):
        return data(name, value)
    raise _wrong(name, value, "bytes, a string, or an asynchronous iterable of them")


def stdin(name: str, value: object) -> bytes | AsyncIterable[Data]:
    """Check what a program reads; None is nothing."""
    return b"" if value is None else content(name, value)


def call(name: str, value: object) -> Callable[..., Any]:
    """Check a function of the caller's."""
    if not callable(value):
        raise _wrong(name, value, "a function")
    return value


def calls(name: str, value: object) -> list[Callable[..., Any]]:
    """Check functions of the caller's."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _wrong(name, value, "a list of functions")
    return [call(f"{name}[{number}]", one) for number, one in enumerate(value)]


def stream(name: str, value: object) -> Literal["stdout", "stderr"]:
    """Check the name of an output stream."""
    if value == "stdout" and isinstance(value, str):
        return "stdout"
    if value == "stderr" and isinstance(value, str):
        return "stderr"
    raise _wrong(name, value, '"stdout" or "stderr"')


def choice(name: str, value: object, choices: Sequence[str]) -> str:
    """Check one of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise _wrong(name, value, " or ".join(repr(one) for one in choices))
    return value


def one_of(name: str, value: object, kind: type[T]) -> T:
    """Check an object of one of our classes."""
    if not isinstance(value, kind):
        raise _wrong(name, value, f"a {kind.__name__}")
    return value


def optional(check: Callable[[str, object], T]) -> Callable[[str, object], T | None]:
    """Return the same check, which lets None through."""
    return lambda name, value: None if value is None else check(name, value)


def given(check: Callable[[str, object], T], name: str, value: object) -> T | None:
    """Check an argument that may be None."""
    return None if value is None else check(name, value)


Table = Mapping[str, Callable[[str, object], object]]


def options(table: Table, values: Mapping[str, object], call: str) -> dict[str, object]:
    """Check the options of a call by a table; refuse those that it does not have."""
    checked = {}
    for name, value in values.items():
        if (check := table.get(name)) is None:
            raise ConfigError(f"{call} got an unexpected keyword argument {name!r}; it takes {', '.join(table)}")
        checked[name] = check(name, value)
    return checked
