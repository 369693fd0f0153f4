"""What `sandbox exec` takes with it into the VM and brings back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 60


def sandbox(*arguments: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "sandbox", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=SECONDS, cwd=cwd, input=stdin)


def test_files_go_in_and_come_back(tmp_path: Path) -> None:
    """Files and directories are put before the run and fetched after it, also when the script fails."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("abc")
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "result.txt").write_text("of before")
    script = (
        "import os, shutil\n"
        "assert open('one.txt').read() == '1'\n"
        "os.makedirs('out/deep')\n"
        "shutil.copy('data/a.txt', 'out/deep/b.txt')\n"
        "open('result.txt', 'w').write('of now')\n"
        "raise SystemExit(3)\n"
    )
    transfers = ("--put", "in:data", "--put", "one.txt", "--get", "out", "--get", "result.txt")
    done = sandbox("exec", *transfers, "-c", script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, b"")
    assert (tmp_path / "out" / "deep" / "b.txt").read_text() == "abc"
    assert (tmp_path / "result.txt").read_text() == "of now"


def test_what_cannot_be_fetched_is_told(tmp_path: Path) -> None:
    """A file that is not there makes the command fail, unless the script did; nothing half-made is left."""
    done = sandbox("exec", "--get", "nothing", "-c", "print('ran')", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (125, b"ran\n")
    assert b"No such file" in done.stderr
    assert sandbox("exec", "--get", "nothing", "-c", "raise SystemExit(4)", cwd=tmp_path).returncode == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--put", "missing"), b"no such file or directory on this host"),
        (("--get", ".."), b"names no file of the guest"),
        (("--get", "a:."), b"is a directory"),
        (("--get", "a:no/such/b"), b"make it first"),
        (("--env-file", "missing"), b"cannot be read"),
        (("--env-file", "bad"), b"line 2: expected KEY=VALUE"),
        (("--idle-timeout", "0"), b"leaves no time"),
        (("--language", "cobol"), b"it has python, bash"),
    ],
)
def test_mistakes_are_told_before_or_instead_of_a_run(tmp_path: Path, arguments: tuple[str, ...], said: bytes) -> None:
    """Each wrong argument is one line that says what to do, and status 125."""
    (tmp_path / "bad").write_text("A=1\nnonsense\n")
    done = sandbox("exec", *arguments, "-c", "1", cwd=tmp_path)
    assert done.returncode == 125
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_environment_directory_user_and_language(tmp_path: Path) -> None:
    """Variables of a file and of the command line, another directory and user, and a shell script by its ending."""
    (tmp_path / "vars").write_text("# comment\nexport A='one two'\nB=file\n\n")
    (tmp_path / "script.sh").write_text('echo "$A|$B|$1|$(id -un)|$PWD"\n')
    options = ("--env-file", "vars", "--env", "B=line", "--cwd", "/tmp", "--user", "root")
    done = sandbox("exec", *options, "script.sh", "x", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"one two|line|x|root|/tmp\n")


def test_silence_beyond_the_idle_time_out_is_status_124(tmp_path: Path) -> None:
    """The envelope names the cause; what was written before is in it."""
    done = sandbox(
        "exec", "--json", "--idle-timeout", "3", "--language", "bash", "-c", "echo a; sleep 60", cwd=tmp_path
    )
    envelope = json.loads(done.stdout)
    assert done.returncode == 124
    assert (envelope["kind"], envelope["stdout"], envelope["certificate"]["cause"]) == ("timeout", "a\n", "idle")


def test_terminal_for_the_script(tmp_path: Path) -> None:
    """With `--pty` and no terminal of our own, the script has one of 24 by 80."""
    done = sandbox("exec", "--pty", "--language", "bash", "-c", "stty size; test -t 1 && echo yes", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"24 80\r\nyes\r\n")


def test_guest_cannot_act_on_our_terminal_by_our_messages(tmp_path: Path) -> None:
    """Control characters of the guest in our own messages are escaped."""
    script = "import os; os.mkdir('a\\x1b[31m'); os.symlink('a\\x1b[31m', 'link')"
    done = sandbox("exec", "--get", "no\x1b[31mfile", "-c", script, cwd=tmp_path)
    assert done.returncode == 125
    assert b"\x1b" not in done.stderr
