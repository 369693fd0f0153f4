"""What a caller asks of a guest, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sandbox import arguments
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
    kill_children: bool = False
    timeout: float | None = None
    idle_timeout: float | None = None
    keep_bytes: int = CAPTURE_BYTES

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
        if self.kill_children:
            message["kill_children"] = True
        if self.limits is not None:
            message["limits"] = self.limits.model_dump(exclude_none=True)
        return message


PROGRAM: arguments.Table = {
    "env": arguments.environment,
    "cwd": arguments.optional(arguments.path),
    "user": arguments.optional(arguments.filled),
    "limits": arguments.optional(lambda name, value: arguments.one_of(name, value, Limits)),
    "timeout": arguments.optional(arguments.seconds),
    "idle_timeout": arguments.optional(arguments.seconds),
    "capture_bytes": arguments.count,
    "kill_children": arguments.flag,
    "id": arguments.ident,
}
"""The options of every program, and how each is checked."""
RUN: arguments.Table = {
    **PROGRAM,
    "stdin": arguments.stdin,
    "on_output": arguments.optional(arguments.call),
    "pty": arguments.optional(arguments.terminal),
}
"""The options of a program that is run to its end."""


def script(language: str, code: object, args: object, name: object) -> tuple[str, dict[str, object]]:
    """Return operation and fields of a script."""
    interpreter, suffix = INTERPRETERS.get(language, ([language], ""))
    fields: dict[str, object] = {
        "code": arguments.text("code", code),
        "argv": [] if args == () else arguments.words("args", args),
        "name": arguments.script_name("name", name) or f"script{suffix}",
    }
    return ("script", {**fields, "interpreter": interpreter}) if interpreter else ("python", fields)


def command(argv: object) -> dict[str, object]:
    """Return the fields of a command: an argument vector, or a line for bash."""
    vector = ["bash", "-c", arguments.word("argv", argv)] if isinstance(argv, str) else arguments.words("argv", argv)
    if not vector:
        raise ConfigError("argv is empty; give a command and its arguments")
    return {"argv": vector}
