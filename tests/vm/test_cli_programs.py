"""The ways in which `sandbox exec` is told what to run, and what it has around it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

SANDBOX = [sys.executable, "-m", "sandbox"]
SECONDS = 60


def sandbox(*arguments: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*SANDBOX, *arguments], capture_output=True, check=False, timeout=SECONDS, cwd=cwd, input=stdin
    )


def unread_bytes(pipe: int) -> int:
    """Return how much is in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project of Python as one finds them."""
    files = {
        "src/main.py": "import helper, sys\nprint(helper.X, sys.argv, __file__)\nopen('made', 'w').write('by it\\n')\n",
        "src/helper.py": "X = 42\n",
        "pkg/__init__.py": "",
        "pkg/__main__.py": "print('module', __name__, __package__)\n",
        ".git/HEAD": "ref: refs/heads/main\n",
        "node_modules/left/pad.js": "",
        "src/__pycache__/helper.pyc": "stale",
        ".venv/bin/python": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_a_script_of_a_project_has_its_files_around_it(project: Path) -> None:
    """It runs where it lies, imports what lies beside it, and what it makes can be printed."""
    done = sandbox("exec", "--project", ".", "--get", "made:-", "src/main.py", "one", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"42 ['src/main.py', 'one'] /workspace/src/main.py\nby it\n"
    assert done.stderr == b""


def test_a_module_and_a_command_in_a_project(project: Path) -> None:
    """`-m` is python3's own, and what no run needs stays here, or what is named instead."""
    assert sandbox("exec", "--project", ".", "-m", "pkg", cwd=project).stdout == b"module __main__ pkg\n"
    done = sandbox("exec", "--project", ".", "--", "find", ".", "-type", "f", cwd=project)
    assert sorted(done.stdout.split()) == [
        b"./pkg/__init__.py",
        b"./pkg/__main__.py",
        b"./src/helper.py",
        b"./src/main.py",
    ]
    done = sandbox("exec", "--project", ".", "--exclude", "pkg", "--exclude", "*.py*", "--", "find", ".", cwd=project)
    assert b"./.git/HEAD" in done.stdout.split()
    assert b".py" not in done.stdout
    assert b"pkg" not in done.stdout


def test_what_a_directory_holds(project: Path) -> None:
    """`--put DIR/.` copies no directory around it, and code can import it."""
    assert sandbox("exec", "--put", "src/.", "-c", "import helper; print(helper.X)", cwd=project).stdout == b"42\n"


def test_commands(tmp_path: Path) -> None:
    """After `--` comes an argument vector, and its status is ours."""
    done = sandbox("exec", "--timeout", "30", "--", "sh", "-c", 'echo "$0 $1"; exit 7', "a b", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"a b --json\n", b"")
    document = json.loads(sandbox("exec", "--json", "--", "no-such-command", cwd=tmp_path).stdout)
    assert (document["kind"], document["exit_code"]) == ("exit", 127)


def test_first_line_and_languages_that_are_not_there(tmp_path: Path) -> None:
    """A language that one of our images has is told with its name, another with a way to run it."""
    (tmp_path / "script").write_text('#!/bin/bash\necho "${BASH_VERSION%%.*}" "$1"\n')
    assert sandbox("exec", "script", "x", cwd=tmp_path).stdout == b"5 x\n"
    (tmp_path / "n.js").write_text("console.log(1)\n")
    done = sandbox("exec", "n.js", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"give --image node" in done.stderr
    (tmp_path / "p.pl").write_text("#!/usr/bin/perl\nprint 'from perl';")
    done = sandbox("exec", "p.pl", cwd=tmp_path)
    assert b"--put p.pl -- perl p.pl" in done.stderr
    assert sandbox("exec", "--put", "p.pl", "--", "perl", "p.pl", cwd=tmp_path).stdout == b"from perl"


def test_processors(tmp_path: Path) -> None:
    """`--cpus` are the guest's, so that programs see them."""
    assert sandbox("exec", "--cpus", "2", "-c", "import os; print(os.cpu_count())", cwd=tmp_path).stdout == b"2\n"


def test_a_loop_over_lines_keeps_its_lines(tmp_path: Path) -> None:
    """With `-n` nothing of our standard input is taken. Control: without, the first command takes all."""
    loop = 'while read -r line; do "$@" -c "print(input.__name__)" >&2; echo "$line"; done'
    for option, lines in ((["-n"], b"one\ntwo\n"), ([], b"one\n")):
        command = ["sh", "-c", loop, "sh", *SANDBOX, "exec", *option]
        done = subprocess.run(
            command, input=b"one\ntwo\n", capture_output=True, check=False, timeout=SECONDS, cwd=tmp_path
        )
        assert done.stdout == lines
    assert sandbox("exec", "-n", "-c", "print(repr(input()))", cwd=tmp_path, stdin=b"x").stderr.endswith(
        b"EOFError: EOF when reading a line\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--project", "missing", "-c", "1"), b"there is no such directory on this host"),
        (("--exclude", "x", "-c", "1"), b"there is no --project"),
        (
            ("--put", "big", "-c", "1"),
            b"guest's disk is half of its memory, 256 MiB: give",
        ),
        (("--json", "--get", "a:-", "-c", "1"), b"name a file to get to"),
        (("--", "--help"), b""),
    ],
)
def test_mistakes_about_what_is_around_it(tmp_path: Path, arguments: tuple[str, ...], said: bytes) -> None:
    """Each is told in one line, before a VM starts."""
    with (tmp_path / "big").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 200 << 20)
    done = sandbox("exec", *arguments, cwd=tmp_path)
    if said:
        told = done.stdout if "--json" in arguments else done.stderr
        assert (done.returncode, len(told.splitlines())) == (125, 1)
        assert said in told
    else:
        assert done.returncode == 127


def test_the_memory_that_is_advised_does(tmp_path: Path) -> None:
    """What is said to be enough is enough."""
    with (tmp_path / "big").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 140 << 20)
    told = sandbox("exec", "--put", "big", "-c", "1", cwd=tmp_path).stderr.decode()
    enough = told.rpartition("--memory ")[2].strip()
    code = "import os; print(os.path.getsize('big'))"
    done = sandbox("exec", "--memory", enough, "--put", "big", "-c", code, cwd=tmp_path)
    assert done.stdout == b"%d\n" % (140 << 20), done.stderr


def test_a_file_that_is_printed_has_the_bounds_of_others(tmp_path: Path) -> None:
    """It is cut at the limit, and a missing one is told."""
    done = sandbox("exec", "--get", "a:-", "--get-limit", "3", "-c", "open('a', 'w').write('abcdef')", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (125, b"abc")
    assert b"more than 3 bytes" in done.stderr
    done = sandbox("exec", "--get", "a:-", "-c", "1", cwd=tmp_path)
    assert done.returncode == 125
    assert b"--get a: the guest refused it: No such file" in done.stderr


def interrupted(code: str, *options: str, times: int) -> tuple[int, bytes, bytes]:
    """Run code, send SIGINT once it has said `ready`, and again each time it says so; return status and streams.

    Programs wait in short sleeps: of a signal that comes just before a sleep, Python hears only when that is over.
    """
    with subprocess.Popen(
        [*SANDBOX, "exec", *options, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        heard = b""
        for _ in range(times):
            heard += process.stdout.readline()
            assert heard.endswith(b"ready\n"), process.stderr.read()
            process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        return process.returncode, heard + out, err


def test_the_first_interrupt_is_the_programs() -> None:
    """It may clean up and choose its status; without a handler it ends as at a terminal."""
    handled = """
import time
try:
    print("ready")
    while True:
        time.sleep(0.05)
except KeyboardInterrupt:
    print("cleaned")
    raise SystemExit(9)
"""
    assert interrupted(handled, times=1) == (9, b"ready\ncleaned\n", b"")
    status, _, err = interrupted("import time\nprint('ready')\nwhile True: time.sleep(0.05)", times=1)
    assert status == 130
    assert b"KeyboardInterrupt" in err
    assert b"sandbox" not in err


def test_the_second_interrupt_ends_a_program_that_ignores_the_first() -> None:
    """It goes with its VM."""
    deaf = """
import signal, time
signal.signal(2, lambda *_: print("ready"))
print("ready")
while True:
    time.sleep(0.05)
"""
    begin = time.monotonic()
    status, out, err = interrupted(deaf, times=2)
    assert (status, out, err) == (130, b"ready\nready\n", b"")
    assert time.monotonic() - begin < SECONDS / 2


def test_an_interrupted_program_is_a_document_too() -> None:
    """With `--json` the object comes as always."""
    command = [*SANDBOX, "exec", "--json", "-c", "input()\nimport time\nwhile True: time.sleep(0.05)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"line\n")
        process.stdin.flush()
        deadline = time.monotonic() + SECONDS
        while unread_bytes(process.stdin.fileno()):  # until it is taken, for the program that has been started
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        document = json.loads(process.communicate(timeout=SECONDS)[0])
    assert (document["kind"], document["exit_code"], document["signal"]) == ("signal", 130, 2)


def test_a_shell_with_files_and_an_end(tmp_path: Path) -> None:
    """`--put`, `--get` and `--timeout` are the shell's, too."""
    (tmp_path / "in.txt").write_text("abc")
    done = sandbox("shell", "--put", "in.txt", "--get", "out.txt", cwd=tmp_path, stdin=b"tr a-z A-Z <in.txt >out.txt\n")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.txt").read_text() == "ABC"
    done = sandbox("shell", "--timeout", "1", cwd=tmp_path, stdin=b"sleep 1000\n")
    assert done.returncode == 124


@pytest.mark.parametrize("command", [["exec"], ["shell"], ["image", "build"], ["trace", "exec"], []])
def test_short_help(command: list[str], tmp_path: Path) -> None:
    """`-h` is `--help` everywhere."""
    short = sandbox(*command, "-h", cwd=tmp_path)
    assert short.returncode == 0
    assert short.stdout == sandbox(*command, "--help", cwd=tmp_path).stdout
    assert b"Usage:" in short.stdout
