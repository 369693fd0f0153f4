"""`sandbox shell` and `sandbox exec --pty` through a real pseudo-terminal, as somebody at a keyboard meets it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sandbox.config import HostConfig
from sandbox.hypervisor.inventory import find_machines, owners

SECONDS = 20.0
PROMPT = rb"user@sbx-[0-9a-f]+-\d+:[^\n]*\$ "


class Typist:
    """Types on a terminal and reads what appears."""

    def __init__(self, *command: str, rows: int = 30, columns: int = 100) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sandbox", *command],
            stdin=self.slave,
            stdout=self.slave,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads run here
        )
        self.screen = b""

    def type(self, keys: str | bytes) -> None:
        os.write(self.master, keys.encode() if isinstance(keys, str) else keys)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def see(self, pattern: bytes) -> bytes:
        """Return what appeared up to and with `pattern`; fail if it does not in time."""
        deadline = time.monotonic() + SECONDS
        while (match := re.search(pattern, self.screen)) is None:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not appear; there is {self.screen[-500:]!r}"
            self.screen += os.read(self.master, 65536)
        seen, self.screen = self.screen[: match.end()], self.screen[match.end() :]
        return seen

    def finish(self) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(SECONDS)


@contextmanager
def typing(*command: str, after: bytes = PROMPT) -> Iterator[Typist]:
    """Type into a command, by default the shell, once it has shown what is waited for."""
    typist = Typist(*(command or ("shell",)))
    try:
        typist.see(after)
        yield typist
    finally:
        if typist.process.poll() is None:
            typist.process.kill()
            typist.process.wait()
        assert typist.process.stderr is not None
        typist.process.stderr.close()
        os.close(typist.master)
        os.close(typist.slave)


def test_a_shell_that_does_not_answer_can_be_left() -> None:
    """Enter, tilde, dot: the terminal is as before, and the VM is gone."""
    with typing() as typist:
        typist.type("stty raw -echo; exec sleep 1000\r")
        typist.type("\x03\x04\r~.")
        assert typist.finish() == 130
        assert termios.tcgetattr(typist.slave) == typist.before
        assert typist.process.stderr is not None
        assert b"left the shell" in typist.process.stderr.read()


def test_a_program_that_ignores_every_key_can_be_left() -> None:
    """`exec --pty` passes on Ctrl-C; Enter, tilde, dot ends it, and nothing is left."""
    code = "import signal\nsignal.signal(2, signal.SIG_IGN)\nprint('up', flush=True)\nwhile True: signal.pause()"
    with typing("exec", "--pty", "-c", code, after=rb"up\r\n") as typist:
        records = owners(HostConfig().runtime_dir)
        mine = {machine.pid for record in records if record.pid == typist.process.pid for machine in record.machines}
        assert mine
        typist.type("\x03\r~.")
        assert typist.finish() == 130
        assert termios.tcgetattr(typist.slave) == typist.before
        assert mine.isdisjoint(machine.pid for machine in find_machines(HostConfig().runtime_dir))
        assert typist.process.stderr is not None
        assert typist.process.stderr.read() == b"sandbox: left the program; its VM is destroyed\n"


def test_a_script_that_was_typed_in_reads_the_terminal_afterwards() -> None:
    """`exec --pty -`: Ctrl-D ends the script; what is typed then is the program's, and it can be left."""
    with typing("exec", "--pty", "-", after=b"") as typist:
        typist.type("print('what')\nprint('got', input())\nwhile True: input()\n\x04")
        typist.see(rb"what\r\n")
        typist.type("it\r")
        typist.see(rb"got it\r\n")
        typist.type("~.")
        assert typist.finish() == 130


def test_editing_interrupting_and_stopping() -> None:
    """Lines can be edited; Ctrl-C and Ctrl-Z reach the program in the guest, not the command; the status is ours."""
    with typing() as typist:
        typist.type("echo wrongg\x7f\x01\x05 end\r")  # backspace, to the beginning, to the end
        typist.see(rb"\nwrong end\r\n")
        typist.see(PROMPT)
        typist.type("echo lost\x15echo kept\r")  # the line is discarded
        typist.see(rb"\nkept\r\n")
        typist.see(PROMPT)
        typist.type("cho first\x01e\r")  # a character at the beginning
        typist.see(rb"\nfirst\r\n")
        typist.see(PROMPT)
        typist.type("\x1b[A\r")  # the line before, by the arrow
        typist.see(rb"\nfirst\r\n")
        typist.see(PROMPT)
        typist.type("sh -c 'echo up; read line; echo got $line; exec sleep 1000'\r")
        typist.see(rb"\nup\r\n")
        typist.type("it\r")
        typist.see(rb"\ngot it\r\n")  # it reads, so bash has given it the terminal, and signals with it
        typist.type("\x03")
        typist.see(PROMPT)
        typist.type("echo $?\r")
        typist.see(rb"\n130\r\n")
        typist.see(PROMPT)
        typist.type("sh -c 'echo up; exec cat'\r")
        typist.see(rb"\nup\r\n")
        typist.type("there\r")
        typist.see(rb"there\r\nthere\r\n")
        typist.type("\x1a")
        typist.see(rb"Stopped")
        typist.see(PROMPT)
        typist.type("fg\r")
        typist.see(rb"exec cat'\r\n")
        typist.type("back\r")
        typist.see(rb"back\r\nback\r\n")
        typist.type("\x04")
        typist.see(PROMPT)
        typist.type("exit 7\r")
        assert typist.finish() == 7
        assert termios.tcgetattr(typist.slave) == typist.before


def test_size_follows_the_terminal_and_full_screen_programs_run() -> None:
    """`stty size` tells our terminal's size, also after it changed; `top` starts and ends."""
    with typing() as typist:
        typist.type("stty size\r")
        typist.see(rb"\n30 100\r\n")
        typist.see(PROMPT)
        typist.resize(40, 120)
        os.kill(typist.process.pid, signal.SIGWINCH)
        typist.type("stty size; tty\r")
        # If Bash hears of the new size after the line, it draws that again, and the output follows on the same line.
        typist.see(rb"40 120\r\n/dev/pts/\d+\r\n")
        typist.see(PROMPT)
        typist.type("top\r")
        typist.see(rb"load average")
        typist.see(rb"PID")
        typist.type("q")
        typist.see(PROMPT)
        typist.type("\x04")
        assert typist.finish() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 129)])
def test_terminal_is_restored_when_the_command_is_killed(number: int, status: int) -> None:
    """A signal to the command ends the VM, restores the terminal and is told by the exit status."""
    with typing() as typist:
        assert termios.tcgetattr(typist.slave) != typist.before
        os.kill(typist.process.pid, number)
        assert typist.finish() == status
        assert termios.tcgetattr(typist.slave) == typist.before


def test_terminal_is_raw_again_after_a_stop() -> None:
    """What the host's shell did to the terminal while the command was stopped is undone when it goes on."""
    with typing() as typist:
        raw = termios.tcgetattr(typist.slave)
        os.kill(typist.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, typist.process.pid, os.WSTOPPED | os.WNOWAIT)
        termios.tcsetattr(typist.slave, termios.TCSANOW, typist.before)
        os.kill(typist.process.pid, signal.SIGCONT)
        typist.type("\r")
        typist.see(PROMPT)
        assert termios.tcgetattr(typist.slave) == raw
        typist.type("\x04")
        assert typist.finish() == 0


def test_terminal_is_restored_when_the_vm_dies() -> None:
    """A QEMU that is killed is one line on standard error and status 125."""
    with typing() as typist:
        directory = _run_directory(typist)
        machines = find_machines(HostConfig().runtime_dir)
        victims = [machine.pid for machine in machines if machine.run_directory == directory]
        assert victims
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert typist.finish() == 125
        assert termios.tcgetattr(typist.slave) == typist.before
        assert typist.process.stderr is not None
        assert b"has ended" in typist.process.stderr.read()


def _run_directory(typist: Typist) -> str:
    """Return the name that the machine's own prompt bears: `sbx-<run directory>-<number>`."""
    typist.type("hostname\r")
    match = re.search(rb"\nsbx-([0-9a-f]+)-\d+\r\n", typist.see(rb"\nsbx-[0-9a-f]+-\d+\r\n"))
    assert match is not None
    return match[1].decode()


def test_commands_come_from_a_pipe() -> None:
    """Without a terminal, commands are read from standard input and output is plain."""
    done = subprocess.run(
        [sys.executable, "-m", "sandbox", "shell", "--env", "A=b"],
        input=b"echo $A; id -un; tty\nexit 4\n",
        capture_output=True,
        check=False,
        timeout=SECONDS,
    )
    assert (done.returncode, done.stdout) == (4, b"b\nuser\nnot a tty\n")
