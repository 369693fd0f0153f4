"""What `sandbox exec` is to run: a script of this host, code, a module, or a command of the guest."""

from __future__ import annotations

import os
import re
import select
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sandbox.cli.exit_code import CANNOT_INVOKE, NOT_FOUND
from sandbox.errors import ConfigError

_LANGUAGES = {".py": "python", ".sh": "bash", ".bash": "bash", ".js": "node", ".mjs": "node", ".cjs": "node"}
_INTERPRETERS = {"sh": "bash", "dash": "bash", "nodejs": "node"}
_VERSIONED = re.compile(r"^(python|node|bash)[\d.]*$")
_READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Script:
    """Code, the name that it bears in the guest, and its language."""

    code: str
    name: str
    language: str


@dataclass(frozen=True)
class Command:
    """An argument vector for the guest."""

    argv: tuple[str, ...]


class ScriptError(ConfigError):
    """The script cannot be read; `status` is what a shell would exit with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Asked:
    """What the command line says of the program.

    `words` are the positional arguments: with `code` or `module` those of the program, else a script and its arguments,
    or, if they came after `--`, a command. `project` is a directory whose files the program has around it.
    """

    words: tuple[str, ...]
    code: str | None = None
    module: str | None = None
    is_command: bool = False
    language: str | None = None
    project: Path | None = None


def find_program(asked: Asked) -> tuple[Script | Command, tuple[str, ...]]:
    """Return what is to run and its arguments; raise `ConfigError`, or `ScriptError` for a script."""
    if asked.code is not None and asked.module is not None:
        raise ConfigError("-c and -m both name a program; give one of them")
    if asked.module is not None:
        if asked.language not in (None, "python"):
            raise ConfigError(f"-m names a module of Python, and --language is {asked.language}")
        return Command(("python3", "-u", "-m", asked.module, *asked.words)), ()
    if asked.code is not None:
        return Script(asked.code, "command.py", asked.language or "python"), asked.words
    if asked.is_command:
        if not asked.words:
            raise ConfigError("nothing to run: after -- comes a command of the guest, such as: exec -- ls -la")
        if asked.language is not None:
            raise ConfigError("--language is for a script, and what follows -- is a command")
        return Command(asked.words), ()
    if not asked.words:
        raise ConfigError(
            "nothing to run: name a script, give -c CODE or -m MODULE, - for standard input, or -- and a command"
        )
    script, *arguments = asked.words
    if asked.project is not None and script != "-" and (inside := _within(Path(script), asked.project)) is not None:
        found = _script(script, asked.language)
        return Command((*_interpreter(found.language), str(inside), *arguments)), ()
    return _script(script, asked.language), tuple(arguments)


def _interpreter(language: str) -> tuple[str, ...]:
    return {"python": ("python3", "-u")}.get(language, (language,))


def _within(script: Path, project: Path) -> PurePosixPath | None:
    """Return the script's place in the project, if it lies there."""
    try:
        return PurePosixPath(script.resolve().relative_to(project.resolve()))
    except ValueError:
        return None


def _script(word: str, language: str | None) -> Script:
    if word == "-":
        data, name, suffix = _standard_input(), "stdin.py", ""
    else:
        path = Path(word)
        data, name, suffix = _file(path), path.name, path.suffix
    if b"\0" in data:
        said = "is a program, no script" if data.startswith(b"\x7fELF") else "has NUL bytes, so it is no script"
        raise ScriptError(f"{word} {said}; for a command of the guest write: exec -- {name}", CANNOT_INVOKE)
    language = language or _LANGUAGES.get(suffix) or _named_by_first_line(data) or "python"
    return Script(data.decode("utf-8", "surrogateescape"), name, language)


def _named_by_first_line(data: bytes) -> str | None:
    """Return the language of a line such as `#!/usr/bin/env -S python3 -u`; None without one."""
    if not data.startswith(b"#!"):
        return None
    words = data[2:].partition(b"\n")[0].decode("utf-8", "replace").split()
    if words and PurePosixPath(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    if not words:
        return None
    name = PurePosixPath(words[0]).name
    name = versioned[1] if (versioned := _VERSIONED.match(name)) else name
    return _INTERPRETERS.get(name, name)


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        hint = f"; for a command of the guest write: exec -- {path}" if len(path.parts) == 1 and not path.suffix else ""
        raise ScriptError(f"{path}: no such file{hint}", NOT_FOUND) from None
    except OSError as error:
        raise ScriptError(f"{path}: {error.strerror}", CANNOT_INVOKE) from None


def _standard_input() -> bytes:
    """Read standard input to its end, also where somebody who shares it does not want to wait for it."""
    if sys.stdin is None:
        raise ConfigError("there is no standard input to read a script from; name a file, or give -c CODE")
    pieces: list[bytes] = []
    while True:
        try:
            piece = os.read(0, _READ_BYTES)
        except BlockingIOError:
            select.select([0], [], [])
            continue
        except OSError as error:
            raise ScriptError(f"standard input cannot be read: {error.strerror or error}", CANNOT_INVOKE) from None
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
