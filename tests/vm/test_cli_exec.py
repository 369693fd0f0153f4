"""What `sandbox exec` takes with it into the VM and brings back."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

SECONDS = 60


def sandbox(*arguments: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "sandbox", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=SECONDS, cwd=cwd, input=stdin)


def unread_bytes(pipe: int) -> int:
    """Return how much is in a pipe."""
    size = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int.from_bytes(size, sys.byteorder)


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
        (("--put", "fifo"), b"only files and directories"),
        (("--put", "bad:/root/x"), b"the guest refused /root/x: Permission denied"),
        (("--get", "a:fifo"), b"no regular file and would not be replaced"),
        (("--get", ".."), b"names no file of the guest"),
        (("--get", "a:."), b"is a directory"),
        (("--get", "a:no/such/b"), b"make it first"),
        (("--env-file", "missing"), b"cannot be read"),
        (("--env-file", "bad"), b"line 2: expected KEY=VALUE"),
        (("--env-file", "open"), b"line 1: the value of A has no closing quote"),
        (("--idle-timeout", "0"), b"leaves no time"),
        (("--transfer-timeout", "0"), b"leaves no time"),
        (("--get-limit", "many"), b"is not a size"),
        (("--language", "cobol"), b"it has python, bash"),
    ],
)
def test_mistakes_are_told_before_or_instead_of_a_run(tmp_path: Path, arguments: tuple[str, ...], said: bytes) -> None:
    """Each wrong argument is one line that says what to do, and status 125."""
    (tmp_path / "bad").write_text("A=1\nnonsense\n")
    (tmp_path / "open").write_text("A='secret\n")
    os.mkfifo(tmp_path / "fifo")
    done = sandbox("exec", *arguments, "-c", "1", cwd=tmp_path)
    assert done.returncode == 125
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert b"nonsense" not in done.stderr
    assert b"secret" not in done.stderr
    assert (tmp_path / "fifo").is_fifo()


def test_environment_directory_user_and_language(tmp_path: Path) -> None:
    """Variables of a file and of the command line, another directory and user, and a shell script by its ending."""
    (tmp_path / "vars").write_text("# comment\r\nexport A='one two'  # quoted\nB=file\n\n")
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


def test_a_lost_guest_is_told_with_the_status_of_the_command(tmp_path: Path) -> None:
    """The document has what was printed before, and the exit code that the command ends with."""
    code = "print('last words', flush=True); open('/proc/sysrq-trigger', 'w').write('o'); import time; time.sleep(99)"
    done = sandbox("exec", "--json", "--user", "root", "-c", code, cwd=tmp_path)
    envelope = json.loads(done.stdout)
    assert (envelope["kind"], envelope["error"]["code"], envelope["stdout"]) == ("infra", "GUEST_LOST", "last words\n")
    assert (envelope["exit_code"], done.returncode) == (125, 125)


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


def test_relative_paths_start_at_the_working_directory(tmp_path: Path) -> None:
    """`--cwd` holds for `--put` and `--get`, too; a guest path that ends with / takes the file's name."""
    (tmp_path / "a").write_text("abc")
    done = sandbox(
        "exec", "--cwd", "/tmp", "--put", "a:in/", "--get", "in/a:b", "-c", "open('in/a').read()", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "b").read_text() == "abc"


def test_a_colon_may_be_part_of_a_name(tmp_path: Path) -> None:
    """What names a file here as a whole is put as that."""
    (tmp_path / "a:b").write_text("abc")
    done = sandbox("exec", "--put", "a:b", "-c", "print(open('a:b').read())", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"abc\n")


def test_what_is_left_out_of_a_directory_is_told(tmp_path: Path) -> None:
    """Links inside come along; one line names those that lead out, and why."""
    script = "import os; os.mkdir('d'); os.symlink('x', 'd/in'); os.symlink('/etc/passwd', 'd/out')"
    done = sandbox("exec", "--get", "d", "-c", script, cwd=tmp_path)
    assert done.returncode == 0
    assert b"left out 1: out (it is a link to '/etc/passwd', an absolute path)" in done.stderr
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["in"]
    assert str((tmp_path / "d/in").readlink()) == "x"


def test_what_is_got_has_a_limit(tmp_path: Path) -> None:
    """A sparse file of 4 TiB is refused by its size, a larger directory where the limit is; no part is left."""
    script = (
        "import os\n"
        "os.truncate(os.open('sparse', os.O_CREAT | os.O_RDWR), 4 << 40)\n"
        "os.mkdir('d')\n"
        "open('d/a', 'wb').write(bytes(3 << 20))\n"
        "open('program', 'w').close(); os.chmod('program', 0o6755)\n"
    )
    gets = ("--get", "sparse", "--get", "program", "--get", "d")
    done = sandbox("exec", *gets, "--get-limit", "2M", "-c", script, cwd=tmp_path)
    assert done.returncode == 125
    assert b"--get sparse: 'sparse' has more bytes than allowed (max_bytes is 2097152)" in done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["program"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "program").stat().st_mode) == 0o755 & ~umask


def test_a_copy_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """`--transfer-timeout` ends what comes and what goes; nothing of it stays here."""
    (tmp_path / "in").write_bytes(bytes(64 << 20))
    script = "open('out', 'wb').write(bytes(64 << 20))"
    for option, name in (("--put", "in"), ("--get", "out")):
        done = sandbox("exec", option, name, "--transfer-timeout", "0.01", "-c", script, cwd=tmp_path)
        assert (done.returncode, b"longer than 0.01 s" in done.stderr) == (125, True)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_force_merges_into_a_directory(tmp_path: Path) -> None:
    """Without it a directory that exists is refused at once; with it, files in it give way and no link is followed."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/kept").write_text("kept")
    (tmp_path / "d/a").write_text("old")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "d/link").symlink_to("../secret")
    script = "import os; os.mkdir('d'); [open('d/' + name, 'w').write('new') for name in ('a', 'link')]"
    refused = sandbox("exec", "--get", "d", "-c", script, cwd=tmp_path)
    assert (refused.returncode, b"--force" in refused.stderr) == (125, True)
    assert sandbox("exec", "--force", "--get", "d", "-c", script, cwd=tmp_path).returncode == 0
    assert {path.name: path.read_text() for path in (tmp_path / "d").iterdir()} == {
        "a": "new",
        "link": "new",
        "kept": "kept",
    }
    assert (tmp_path / "secret").read_text() == "secret"


def test_what_cannot_be_copied_is_named(tmp_path: Path) -> None:
    """What the guest cannot read fails the command after all else was copied; links go in as they are."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to("/etc/hostname")
    script = "import os; os.readlink('in/link'); os.mkdir('d'); open('d/a', 'w'); os.mkdir('d/locked', 0)"
    done = sandbox("exec", "--put", "in", "--get", "d", "-c", script, cwd=tmp_path)
    assert done.returncode == 125
    assert b"--get d: 1 could not be copied: locked (Permission denied)" in done.stderr
    assert (tmp_path / "d/a").exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_lead_nowhere(tmp_path: Path, closed: str) -> None:
    """Output for a closed stream is dropped: it goes into no file that has the number by now; the status is right."""
    code = "import os; os.write(1, b'out'); os.write(2, b'err'); raise SystemExit(6)"
    line = f'exec "$@" {closed}'
    command = ["bash", "-c", line, "bash", sys.executable, "-m", "sandbox", "exec", "-c", code]
    done = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS, cwd=tmp_path)
    assert done.returncode == 6
    assert done.stdout == (b"" if ">&-" in closed.split() else b"out")
    assert done.stderr == (b"" if "2>&-" in closed.split() else b"err")


@pytest.mark.parametrize(("redirection", "status"), [("<&-", 125), ("0>written", 126)])
def test_script_that_cannot_be_read_from_standard_input_is_told(tmp_path: Path, redirection: str, status: int) -> None:
    """`exec -` without an input that can be read is one line and no internal error."""
    command = ["bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-m", "sandbox", "exec", "-"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS, cwd=tmp_path)
    assert (done.returncode, b"standard input" in done.stderr, b"internal" in done.stderr) == (status, True, False)


def test_script_from_a_pipe_that_nobody_waits_for_is_read_to_its_end(tmp_path: Path) -> None:
    """Whoever shares standard input may have made it non-blocking: half a script is never run."""
    ours, pipe = os.pipe()
    os.set_blocking(ours, False)
    with subprocess.Popen(
        [sys.executable, "-m", "sandbox", "exec", "-"], stdin=ours, stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        os.write(pipe, b"print(1)\n")
        deadline = time.monotonic() + SECONDS
        while unread_bytes(ours) and time.monotonic() < deadline and process.poll() is None:
            pass
        os.close(ours)
        os.write(pipe, b"print(2)\n")
        os.close(pipe)
        said, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, said) == (0, b"1\n2\n")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_output_that_cannot_be_written_is_told(tmp_path: Path, options: tuple[str, ...]) -> None:
    """A full disk under standard output is one line and status 125."""
    command = [sys.executable, "-m", "sandbox", "exec", *options, "-c", "print(1)"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, check=False, timeout=SECONDS
        )
    assert done.returncode == 125
    assert done.stderr == b"sandbox: our stdout cannot be written: No space left on device\n"


def test_terminal_that_nobody_reads_does_not_hold_up_a_time_out() -> None:
    """The event loop never waits for a terminal's room."""
    master, slave = pty.openpty()
    try:
        command = [sys.executable, "-m", "sandbox", "exec", "--timeout", "2", "-c", "while True: print('x' * 1000)"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=slave, stderr=subprocess.PIPE, check=False, timeout=SECONDS
        )
    finally:
        os.close(slave)
        os.close(master)
    assert (done.returncode, b"timed out after 2 s" in done.stderr) == (124, True)
