"""What a caller asks of a guest, checked before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sandbox.config import Limits
from sandbox.errors import ConfigError

CAPTURE_BYTES = 8 * 1024 * 1024
INTERPRETERS: Mapping[str, tuple[list[str], str]] = {
    "python": ([], ".py"),  # forked from the warm one
    "bash": (["bash"], ".sh"),
    "node": (["node"], ".js"),
}
"""Command and file name's ending of the languages that differ from `LANGUAGE FILE`."""


@dataclass(frozen=True)
class Request:
    """One program to start, with what the host enforces about it."""

    op: str
    fields: Mapping[str, object]
    id: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    limits: Limits | None = None
    pty: tuple[int, int] | None = None
    """Rows and columns of a terminal; None for plain pipes."""
    is_server: bool = False
    timeout: float | None = None
    idle_timeout: float | None = None
    keep_bytes: int = CAPTURE_BYTES

    def __post_init__(self) -> None:
        for name, seconds in (("timeout", self.timeout), ("idle_timeout", self.idle_timeout)):
            if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
                raise ConfigError(f"{name} is {seconds:g} s; give a positive number of seconds or None")
        if self.keep_bytes < 0:
            raise ConfigError(f"capture_bytes is {self.keep_bytes}; give 0 or more")
        if self.pty is not None and not all(type(number) is int and 0 < number < 65536 for number in self.pty):
            raise ConfigError(f"a terminal of {self.pty[0]} rows and {self.pty[1]} columns cannot be; give 1 to 65535")
        self._check_words()

    @property
    def output_bytes(self) -> int | None:
        return self.limits.output_bytes if self.limits is not None else None

    def message(self) -> dict[str, object]:
        """Return the payload of START."""
        message: dict[str, object] = {"op": self.op, **self.fields}
        message |= {"env": dict(self.env), "cwd": self.cwd, "user": self.user}
        if self.pty is not None:
            message["pty"] = list(self.pty)
        if self.is_server:
            message["control"] = True
        if self.limits is not None:
            message["limits"] = self.limits.model_dump(exclude_none=True)
        return message

    def _check_words(self) -> None:
        """Refuse what no program can be given: names without a name, and NUL bytes."""
        words: list[object] = [self.cwd, self.user, self.fields.get("name"), *self.env.keys(), *self.env.values()]
        argv = self.fields.get("argv", ())
        words += argv if isinstance(argv, list) else []
        for name in self.env:
            if not name or "=" in name:
                raise ConfigError(f"environment variable name {name!r} is empty or holds '='")
        for word in words:
            if word is None:
                continue
            if not isinstance(word, str):
                raise ConfigError(f"{word!r} is no string; arguments, paths and environment are strings")
            if "\0" in word:
                raise ConfigError(
                    "an argument, path or environment variable holds a NUL byte, which no program can take"
                )


def script(language: str, code: str, args: Sequence[str], name: str) -> tuple[str, dict[str, object]]:
    """Return operation and fields of a script."""
    interpreter, suffix = INTERPRETERS.get(language, ([language], ""))
    fields: dict[str, object] = {"code": code, "argv": list(args), "name": name or f"script{suffix}"}
    return ("script", {**fields, "interpreter": interpreter}) if interpreter else ("python", fields)


def command(argv: Sequence[str] | str) -> dict[str, object]:
    """Return the fields of a command: an argument vector, or a line for bash."""
    vector = ["bash", "-c", argv] if isinstance(argv, str) else list(argv)
    if not vector:
        raise ConfigError("the argument vector is empty")
    return {"argv": vector}
