"""What `sandbox exec` takes for a script, a command or a mistake, and in which language."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sandbox.cli.program import Asked, Command, Script, ScriptError, find_program
from sandbox.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "content", "language"),
    [
        ("a.py", "print()", "python"),
        ("a.py", "#!/bin/bash\n", "python"),
        ("a.sh", "", "bash"),
        ("a.js", "", "node"),
        ("a.mjs", "", "node"),
        ("plain", "print()", "python"),
        ("plain", "#!/bin/sh\n", "bash"),
        ("plain", "#!/bin/bash -e\n", "bash"),
        ("plain", "#! /usr/bin/python3.11\n", "python"),
        ("plain", "#!/usr/bin/env node\n", "node"),
        ("plain", "#!/usr/bin/env -S A=1 python3 -u\n", "python"),
        ("plain", "#!/usr/bin/perl -w\n", "perl"),
        ("plain", "#!\n", "python"),
        ("plain", "#!/usr/bin/env\n", "python"),
        ("plain.txt", "#!/bin/bash\n", "bash"),
    ],
)
def test_language_by_ending_then_first_line(tmp_path: Path, name: str, content: str, language: str) -> None:
    """As a shell and an editor would say; what says nothing is Python."""
    path = tmp_path / name
    path.write_text(content)
    assert find_program(Asked((str(path), "a", "b"))) == (Script(content, name, language), ("a", "b"))
    assert find_program(Asked((str(path),), language="bash"))[0] == Script(content, name, "bash")


@pytest.mark.parametrize(
    ("asked", "program", "arguments"),
    [
        (Asked(("ls", "-la"), is_command=True), Command(("ls", "-la")), ()),
        (Asked(("a", "b"), code="1"), Script("1", "command.py", "python"), ("a", "b")),
        (Asked(("-x",), code="1", is_command=True), Script("1", "command.py", "python"), ("-x",)),
        (Asked(("8000",), module="http.server"), Command(("python3", "-u", "-m", "http.server", "8000")), ()),
    ],
)
def test_commands_code_and_modules(asked: Asked, program: Script | Command, arguments: tuple[str, ...]) -> None:
    """After -c and -m all words are the program's, with or without a `--` before them."""
    assert find_program(asked) == (program, arguments)


def test_a_script_of_a_project_runs_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script outside of the project, or code, is put as always."""
    (tmp_path / "project/deep").mkdir(parents=True)
    for name in ("project/deep/main.py", "project/run.sh", "other.py"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "project")
    project = Path("../project")
    assert find_program(Asked(("deep/main.py", "1"), project=project)) == (
        Command(("python3", "-u", "deep/main.py", "1")),
        (),
    )
    assert find_program(Asked(("run.sh",), project=project)) == (Command(("bash", "run.sh")), ())
    assert find_program(Asked(("../other.py",), project=project)) == (Script("", "other.py", "python"), ())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(()), "nothing to run"),
        (Asked((), is_command=True), "after -- comes a command"),
        (Asked((), code="1", module="x"), "give one of them"),
        (Asked((), module="x", language="bash"), "-m names a module of Python"),
        (Asked(("ls",), is_command=True, language="bash"), "--language is for a script"),
    ],
)
def test_mistakes(asked: Asked, said: str) -> None:
    """Each says what to write instead."""
    with pytest.raises(ConfigError, match=said):
        find_program(asked)


@pytest.mark.parametrize(
    ("name", "content", "status", "said"),
    [
        ("tool", b"\x7fELF\0", 126, "is a program, no script; for a command of the guest write: exec -- tool"),
        ("nul.py", b"a\0b", 126, "has NUL bytes, so it is no script"),
        ("directory", None, 126, "Is a directory"),
        ("missing.py", b"", 127, "no such file$"),
    ],
)
def test_what_is_no_script(tmp_path: Path, name: str, content: bytes | None, status: int, said: str) -> None:
    """It is refused with the status of a shell, before a VM starts."""
    if content is None:
        (tmp_path / name).mkdir()
    elif content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ScriptError, match=said) as refused:
        find_program(Asked((str(tmp_path / name),)))
    assert refused.value.status == status


def test_a_command_that_is_taken_for_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word without a file, an ending or a directory is probably one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScriptError, match="ls: no such file; for a command of the guest write: exec -- ls"):
        find_program(Asked(("ls",)))


def test_no_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """We may have been started without one."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="there is no standard input"):
        find_program(Asked(("-",)))
