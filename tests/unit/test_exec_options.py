"""Where the options of `sandbox exec` end, and what follows them."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from sandbox.cli.exec_options import ExecCommand, takes_exec_options
from sandbox.cli.exec_request import ExecRequest


def request(*arguments: str) -> ExecRequest:
    """Return what these arguments ask for."""
    app, asked = typer.Typer(), []

    @app.command("exec", cls=ExecCommand, context_settings={"allow_interspersed_args": False})
    @takes_exec_options
    def command(_context: typer.Context, request: ExecRequest) -> None:
        asked.append(request)

    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return asked[0]


@pytest.mark.parametrize(
    ("arguments", "words", "is_command"),
    [
        (["--", "ls", "-la"], ("ls", "-la"), True),
        (["--"], (), True),
        ([], (), False),
        (["a.py", "--", "b"], ("a.py", "--", "b"), False),
        (["a.py", "-n", "x"], ("a.py", "-n", "x"), False),
        (["-", "x"], ("-", "x"), False),
        (["-n", "--", "ls"], ("ls",), True),
        (["--cwd", "--", "ls"], ("ls",), False),
        (["--cwd", "--", "--", "ls"], ("ls",), True),
        (["--cwd=--", "--", "ls"], ("ls",), True),
        (["-e", "--", "--", "ls"], ("ls",), True),
        (["-eA=1", "--", "ls"], ("ls",), True),
        (["-ne", "A=1", "--", "ls"], ("ls",), True),
        (["-neA=1", "a.py"], ("a.py",), False),
        (["-c", "--", "a"], ("a",), False),
        (["-c1", "--", "-x"], ("-x",), True),
        (["--timeout", "-1", "--", "ls"], ("ls",), True),
        (["--put", "a", "--put", "b", "a.py"], ("a.py",), False),
    ],
)
def test_where_options_end(arguments: list[str], words: tuple[str, ...], is_command: bool) -> None:
    """A `--` that is an option's value ends nothing, and one after the first word belongs to the program."""
    program = request(*arguments).program
    assert (program.words, program.is_command) == (words, is_command)


def test_every_option_arrives() -> None:
    """Typed once in the list of options, and once where it is kept."""
    asked = request(
        *("--project", "p", "--exclude", "x", "--exclude", "y", "--timeout", "1", "--idle-timeout", "2", "-e", "A=1"),
        *("--env-file", "f", "--cwd", "/c", "--user", "root", "--put", "a", "--get", "b", "--get-limit", "3K"),
        *("--transfer-timeout", "4", "--force", "-n", "--pty", "--memory", "1G", "--cpus", "2", "--image", "i"),
        *("--profile", "q", "--language", "bash", "-m", "mod", "word"),
    )
    given = asked.given
    assert (given.image, given.memory, given.cpus, given.profile) == ("i", "1G", 2, "q")
    assert (given.timeout, given.idle_timeout, given.get_limit, given.transfer_timeout) == (1, 2, "3K", 4)
    assert (given.cwd, given.user, given.exclude) == ("/c", "root", ("x", "y"))
    assert (asked.env, [str(path) for path in asked.env_file], asked.put, asked.get) == (
        ("A=1",),
        ["f"],
        ("a",),
        ("b",),
    )
    assert (asked.force, asked.no_stdin, asked.pty, asked.as_json) == (True, True, True, False)
    program = asked.program
    assert (program.words, program.module, program.language, str(program.project)) == (("word",), "mod", "bash", "p")
