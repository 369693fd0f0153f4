"""What agent frameworks and their test suites expect of the default image and of whoever runs commands in it."""

from __future__ import annotations

import os
import time

import pytest

from sandbox.errors import ConfigError, GuestFileError
from sandbox.guest.events import Output
from sandbox.image.recipe import load_recipe
from sandbox.result import Outcome
from sandbox.vm import VM

MIB = 1024 * 1024
COMMANDS = """
sh bash python python3 ps adduser userdel whoami find grep base64 tar wc printf timeout sudo
cat ls cp mv rm mkdir chmod touch head tail sed awk sort git curl top less xargs env id kill pgrep
"""


async def test_commands_are_on_the_path(vm: VM) -> None:
    """Every tool that suites call is found."""
    result = await vm.exec(
        f"for name in {' '.join(COMMANDS.split())}; do command -v $name >/dev/null || echo $name; done"
    )
    assert (result.exit_code, result.text) == (0, "")


async def test_numpy_is_there(vm: VM) -> None:
    """Arrays work in the warm interpreter and in a fresh one."""
    code = "import numpy; print(int(numpy.arange(10).sum()))"
    assert (await vm.run(code, timeout=60)).text == "45\n"
    assert (await vm.exec(["python", "-c", code], timeout=60)).text == "45\n"


async def test_users_can_be_made_and_used(vm: VM) -> None:
    """`adduser` works as root as Debian's does, programs run as the new user, and permissions hold between users."""
    made = await vm.exec(["adduser", "--comment", "", "--disabled-password", "ada"], user="root", timeout=60)
    assert made.ok, made.stderr
    assert (await vm.exec("whoami; echo $HOME", user="ada", cwd="/home/ada")).text == "ada\n/home/ada\n"
    await vm.files_of("ada").write("/home/ada/mine", b"x", mode=0o600)
    with pytest.raises(GuestFileError) as refused:
        await vm.files.read("/home/ada/mine")
    assert refused.value.errno == 13
    assert (await vm.exec(["userdel", "ada"], user="root")).ok


async def test_fifty_mebibytes_travel_each_way(vm: VM) -> None:
    """A file of 50 MiB comes back as it was; 50 MiB on standard input arrive to the last byte."""
    data = os.urandom(MIB) * 50
    await vm.files.write("large", data)
    assert await vm.files.read("large") == data
    await vm.files.remove("large")
    counted = await vm.exec("sha256sum | cut -c1-16; echo", stdin=data, timeout=120)
    assert counted.ok
    assert (await vm.exec(["wc", "-c"], stdin=data, timeout=120)).text.strip() == str(50 * MIB)


async def test_large_output_comes_in_one_call(vm: VM) -> None:
    """Half a mebibyte and more is kept whole."""
    result = await vm.exec("seq 1 200000", timeout=60)
    assert result.stdout == b"".join(b"%d\n" % number for number in range(1, 200_001))
    assert not result.stdout_truncated


async def test_statuses_are_those_of_a_shell(vm: VM) -> None:
    """143 at once for who ends itself by SIGTERM, 126 for what cannot be executed, 127 for what is not there."""
    started = time.monotonic()
    assert (await vm.exec("kill -TERM $$", timeout=30)).shell_status == 143
    assert time.monotonic() - started < 5
    assert (await vm.exec(["bash", "-c", "kill -9 $$"])).shell_status == 137
    assert (await vm.exec(["/etc/passwd"])).exit_code == 126
    assert (await vm.exec(["no-such-command"])).exit_code == 127
    refused = await vm.run("import subprocess; subprocess.run(['/etc/passwd'])")
    assert b"PermissionError" in refused.stderr


async def test_time_out_leaves_no_process_of_the_tree(vm: VM) -> None:
    """Children in the background, in sessions of their own, and deaf to signals are gone with the program."""
    command = (
        "trap '' TERM INT HUP; sleep 1000 & setsid sleep 1000 & setsid bash -c 'sleep 1000 & sleep 1000' & sleep 1000"
    )
    result = await vm.exec(command, timeout=0.5)
    assert result.outcome is Outcome.TIMED_OUT
    assert (await vm.exec("pgrep -c sleep")).text == "0\n"


@pytest.mark.parametrize("child", ["sleep 1000", "yes", "bash -c 'while :; do echo x; sleep 0.1; done'"])
async def test_background_child_does_not_delay_the_result(vm: VM, child: str) -> None:
    """Whether it is silent or never stops writing, a child that holds the output survives, and nobody waits for it."""
    result = await vm.exec(f"setsid {child} & echo done", timeout=20)
    assert result.exit_code == 0
    assert b"done\n" in result.stdout
    assert result.duration < 10
    assert (await vm.exec(["pgrep", "-f", child.split(maxsplit=1)[0]])).ok


async def test_standard_input_is_at_its_end(vm: VM) -> None:
    """Who reads without being given anything does not hang."""
    assert (await vm.exec("cat; read x; echo status $?", timeout=10)).text == "status 1\n"
    assert b"EOFError" in (await vm.run("input()", timeout=10)).stderr


async def test_terminal_is_dumb_unless_there_is_one(vm: VM) -> None:
    """`TERM=dumb` without a terminal; with one, no marks of pasted text in an interactive shell."""
    assert (await vm.exec("echo $TERM")).text == "dumb\n"
    shell = await vm.exec(["bash", "-i"], pty=(24, 80), stdin=b"echo $TERM\nexit\n", timeout=20)
    assert b"xterm" in shell.stdout
    assert b"\x1b[?2004" not in shell.stdout


async def test_terminal_has_a_size_that_changes(vm: VM) -> None:
    """24 by 80 as asked, then what `resize` says, and the program is told."""
    code = (
        "import os, signal, sys\n"
        "def changed(*_): print('now', *os.get_terminal_size(0), flush=True); sys.exit(3)\n"
        "signal.signal(signal.SIGWINCH, changed)\n"
        "print('first', *os.get_terminal_size(0), flush=True)\n"
        "signal.pause()\n"
    )
    await vm.files.write("size.py", code.encode())
    execution = await vm.spawn(["python3", "size.py"], stdin=None, pty=(24, 80), timeout=30)
    seen = b""
    async for event in execution.events():
        if isinstance(event, Output):
            seen += event.data
            if b"first 80 24" in seen:
                execution.resize(50, 132)
    assert b"now 132 50" in seen
    assert (await execution.wait()).exit_code == 3


async def test_terminal_passes_control_characters(vm: VM) -> None:
    """Ctrl-C interrupts and Ctrl-D ends, as at a keyboard; `/dev/tty` is the same terminal."""
    execution = await vm.spawn("echo up > /dev/tty; exec sleep 1000", stdin=None, pty=(24, 80), timeout=30)
    async for event in execution.events():
        if isinstance(event, Output) and b"up" in event.data:
            await execution.write(b"\x03")
    assert (await execution.wait()).shell_status == 130
    ended = await vm.spawn(["cat"], stdin=None, pty=(24, 80), timeout=30)
    await ended.write(b"line\n\x04")
    assert (await ended.wait()).stdout == b"line\r\nline\r\n"


async def test_odd_names_and_files(vm: VM) -> None:
    """Loops of links, FIFOs, and names that are no text are refused or handled, never hung upon."""
    await vm.exec("ln -s a b; ln -s b a; mkfifo pipe; touch $'new\\nline' 'sp ace' $'\\xff'")
    for name, number in (("a", 40), ("pipe", 22)):
        with pytest.raises(GuestFileError) as refused:
            await vm.files.read(name)
        assert refused.value.errno == number
    names = {entry.name for entry in await vm.files.list()}
    assert {"new\nline", "sp ace", "\udcff"} <= names
    result = await vm.exec("printf '\\xff'")
    assert (result.stdout, result.text) == (b"\xff", "\ufffd")


async def test_languages_are_those_of_the_image(vm: VM) -> None:
    """Python and bash in the default image; what it has not is the caller's mistake, told with what there is."""
    assert vm.languages == ("python", "bash")
    result = await vm.run('echo "$0 $1"; exit 4', language="bash", args=["x y"], name="tool.sh")
    assert (result.exit_code, result.text.endswith("tool.sh x y\n")) == (4, True)
    with pytest.raises(ConfigError, match="it has python, bash"):
        await vm.run("1", language="node")


def test_node_is_one_recipe_away() -> None:
    """The recipe `node` declares the language."""
    assert load_recipe("node").languages == ("python", "bash", "node")
