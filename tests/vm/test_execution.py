"""What a program does in a real VM, and what the result says about it."""

from __future__ import annotations

import signal
import textwrap
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from sandbox.config import Limits
from sandbox.errors import ConfigError, GuestFileError, GuestLost
from sandbox.guest.events import StreamName
from sandbox.result import Outcome
from sandbox.template.template import Template
from sandbox.vm import VM

MIB = 1024 * 1024


async def test_code_runs_and_its_output_comes_back(vm: VM) -> None:
    """The simplest program of all."""
    result = await vm.run("print(6 * 7)", timeout=10)
    assert (result.outcome, result.exit_code, result.stdout, result.stderr) == (Outcome.EXITED, 0, b"42\n", b"")
    assert result.ok
    assert result.vm == vm.name


async def test_the_guest_is_a_machine_of_its_own(vm: VM) -> None:
    """The kernel, the processes and the user are the guest's."""
    result = await vm.exec("uname -r; hostname; id -un; cat /proc/1/comm; ls /sys/class/net; pwd")
    release, hostname, user, init, *interfaces, cwd = result.text.split()
    assert "cloud" in release
    assert hostname == vm.name
    assert user == "user"
    assert init.startswith("python3")
    assert interfaces == ["lo"]
    assert cwd == "/workspace"


async def test_exit_status_of_system_exit_is_kept(vm: VM) -> None:
    """`SystemExit(7)` is a failure with status 7, never a success, and what was written before stays."""
    result = await vm.run("open('kept', 'w').write('x'); print('before'); raise SystemExit(7)")
    assert (result.exit_code, result.ok, result.stdout) == (7, False, b"before\n")
    assert await vm.read_file("kept") == b"x"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("def f(:\n  pass", 1, b"SyntaxError"),
        ("import nothing_of_that_name", 1, b"ModuleNotFoundError"),
        ("raise SystemExit('words')", 1, b"words"),
        ("import sys; sys.exit()", 0, b""),
        ("import sys; sys.exit(258)", 2, b""),
        ("import atexit; atexit.register(print, 'bye'); 1 / 0", 1, b"script.py"),
    ],
)
async def test_python_ends_as_an_interpreter_would(vm: VM, code: str, status: int, said: bytes) -> None:
    """Uncaught errors print a trace that begins in the user's file; statuses follow Python's rules."""
    result = await vm.run(code)
    assert result.exit_code == status
    assert said in result.stderr
    assert b"sandbox-agent" not in result.stderr


async def test_script_sees_what_a_script_sees(vm: VM) -> None:
    """Arguments, file name, environment, standard input and working directory are as given."""
    code = (
        "import os, sys\n"
        "print(sys.argv[1:], os.path.basename(__file__), __name__, os.environ['KEY'], os.getcwd())\n"
        "print(sys.stdin.read().upper())\n"
    )
    result = await vm.run(
        code, args=["a b", "ü"], name="my tool.py", env={"KEY": "wörth"}, cwd="/tmp", stdin="grüße".encode()
    )
    assert result.text == "['a b', 'ü'] my tool.py __main__ wörth /tmp\nGRÜSSE\n"


async def test_binary_output_is_not_touched(vm: VM) -> None:
    """Bytes that are no text arrive as they are, on both streams."""
    result = await vm.run("import os; os.write(1, bytes(range(256))); os.write(2, b'\\xff\\x00')")
    assert result.stdout == bytes(range(256))
    assert result.stderr == b"\xff\x00"


async def test_output_beyond_the_limit_is_counted_and_marked(vm: VM) -> None:
    """50 MiB of output end in a result that holds the first MiB, says so, and knows the total."""
    code = "import sys\nfor _ in range(50): sys.stdout.buffer.write(b'x' * 1048576)"
    result = await vm.run(code, capture_bytes=MIB, timeout=60)
    assert result.exit_code == 0
    assert (len(result.stdout), result.stdout_bytes, result.stdout_truncated) == (MIB, 50 * MIB, True)


async def test_output_arrives_while_the_program_runs(vm: VM) -> None:
    """Each line is delivered when it is written, not at the end."""
    arrived: dict[StreamName, bytes] = {"stdout": b"", "stderr": b""}
    seen = anyio.Event()

    def on_output(stream: StreamName, data: bytes) -> None:
        arrived[stream] += data
        if arrived["stdout"] == b"one\n":
            seen.set()

    async with anyio.create_task_group() as group:
        code = "import sys; print('one'); sys.stdin.readline(); print('two', file=sys.stderr)"

        async def answer_when_seen() -> AsyncIterator[bytes]:
            await seen.wait()
            yield b"go on\n"

        async def run() -> None:
            result = await vm.run(code, stdin=answer_when_seen(), on_output=on_output, timeout=10)
            assert result.ok

        group.start_soon(run)
    assert arrived == {"stdout": b"one\n", "stderr": b"two\n"}


async def test_timeout_kills_the_whole_tree_and_keeps_the_output(vm: VM) -> None:
    """After the deadline no child lives, whatever session it moved to; what was written is there."""
    started = time.monotonic()
    result = await vm.exec("echo early; setsid sleep 1000 & trap '' TERM INT HUP; sleep 1001", timeout=1.5)
    elapsed = time.monotonic() - started
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.TIMED_OUT, None, b"early\n")
    assert result.shell_status == 124
    assert elapsed < 3.5
    left = await vm.exec("ps -e -o comm=")
    assert b"sleep" not in left.stdout


async def test_infinite_loop_ends_at_its_timeout(vm: VM) -> None:
    """A busy loop is ended by the host's clock, and the VM is usable afterwards."""
    result = await vm.run("while True: pass", timeout=0.5)
    assert result.timed_out
    assert (await vm.run("print('still here')")).text == "still here\n"


async def test_signals_are_reported_as_signals(vm: VM) -> None:
    """A program that ends itself by SIGTERM was signalled, at once, and is not taken for timed out."""
    result = await vm.exec("kill -TERM $$", timeout=30)
    assert (result.outcome, result.signal, result.exit_code) == (Outcome.SIGNALED, signal.SIGTERM, None)
    assert result.shell_status == 143
    assert result.duration < 5


async def test_missing_and_forbidden_commands_have_the_shells_statuses(vm: VM) -> None:
    """127 for what does not exist, 126 for what cannot be executed."""
    assert (await vm.exec(["no-such-command"])).exit_code == 127
    assert (await vm.exec(["/etc/passwd"])).exit_code == 126
    assert (await vm.exec(["true"], cwd="/no/such/place")).exit_code == 127
    assert (await vm.exec(["true"], user="nobody-of-that-name")).exit_code == 126


async def test_running_out_of_memory_is_told_as_such(vm: VM) -> None:
    """A program that takes more than there is gets killed; the agent and the VM survive it."""
    result = await vm.run("data = bytearray(1 << 30)", timeout=60)
    assert result.outcome in (Outcome.OUT_OF_MEMORY, Outcome.EXITED)
    hog = "import os\nkeep = []\nwhile True: keep.append(os.urandom(1 << 20))"
    assert (await vm.run(hog, timeout=60)).outcome is Outcome.OUT_OF_MEMORY
    assert (await vm.run("print(1)")).ok


async def test_a_program_that_needs_more_than_the_guest_has_runs_with_a_part_compressed(vm: VM) -> None:
    """230 MB fit into a guest of 256 MiB, but count for the caller's own bound, and there is an end to it."""
    lists = "keep = [list(range(n << 16, (n << 16) + 25_000)) for n in range({})]\nprint(len(keep))"
    assert (await vm.run(lists.format(230), timeout=120)).stdout == b"230\n"
    bounded = await vm.run(lists.format(230), timeout=120, limits=Limits(memory_bytes=200 << 20))
    assert bounded.outcome is Outcome.OUT_OF_MEMORY
    assert (await vm.run(lists.format(1000), timeout=120)).outcome is Outcome.OUT_OF_MEMORY
    assert (await vm.run("print(1)")).ok


async def test_programs_have_room_when_all_disks_of_memory_are_full(vm: VM) -> None:
    """Also if what fills them cannot be compressed."""
    fill = """
        import os
        for path in ("/dev/shm/file", "/tmp/file"):
            file = open(path, "wb", 0)
            try:
                while True:
                    file.write(os.urandom(1 << 18))
            except OSError as error:
                print(error.errno)
    """
    assert (await vm.run(textwrap.dedent(fill), timeout=60)).stdout == b"28\n28\n"
    assert (await vm.run("print(1)", timeout=10)).stdout == b"1\n"
    assert (await vm.exec(["echo", "2"], timeout=10)).stdout == b"2\n"


async def test_background_child_does_not_delay_the_result(vm: VM) -> None:
    """A daemon that holds standard output open survives, and nobody waits for it."""
    result = await vm.exec("setsid sleep 1003 & echo done", timeout=10)
    assert (result.exit_code, result.stdout) == (0, b"done\n")
    assert result.duration < 5
    assert (await vm.exec("pgrep -f 'sleep 1003'")).ok


async def test_unread_input_is_no_obstacle(vm: VM) -> None:
    """A program that ignores 5 MiB of input ends normally; one that reads them gets every byte."""
    data = bytes(5 * MIB)
    assert (await vm.exec(["true"], stdin=data, timeout=20)).ok
    assert (await vm.exec(["wc", "-c"], stdin=data, timeout=20)).text.strip() == str(len(data))


async def test_commands_run_side_by_side(vm: VM) -> None:
    """Several executions share one VM without mixing their streams."""
    results: dict[int, bytes] = {}

    async def one(number: int) -> None:
        results[number] = (await vm.exec(f"for i in 1 2 3; do echo {number}; sleep 0.05; done")).stdout

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(one, number)
    assert results == {number: f"{number}\n".encode() * 3 for number in range(5)}


async def test_files_travel_both_ways(vm: VM) -> None:
    """Content, mode and odd names survive; refusals carry the guest's errno."""
    data = bytes(range(256)) * 4096
    await vm.write_file("with space\nand newline ü", data, mode=0o750)
    assert await vm.read_file("with space\nand newline ü") == data
    assert (await vm.exec("stat -c %a with*")).text.strip() == "750"
    with pytest.raises(GuestFileError) as missing:
        await vm.read_file("nothing")
    assert missing.value.errno == 2
    with pytest.raises(GuestFileError) as forbidden:
        await vm.write_file("/etc/passwd", b"")
    assert forbidden.value.errno == 13
    with pytest.raises(GuestFileError) as large:
        await vm.read_file("with space\nand newline ü", limit=10)
    assert large.value.errno == 27


async def test_root_is_there_for_who_asks(vm: VM) -> None:
    """The user is unprivileged by default and root by request."""
    assert (await vm.exec("id -u")).text == "1000\n"
    assert (await vm.exec("id -u", user="root")).text == "0\n"


async def test_wrong_arguments_are_refused_before_anything_is_sent(vm: VM) -> None:
    """Impossible requests are the caller's mistake, told at once."""
    with pytest.raises(ConfigError, match="empty"):
        await vm.exec([])
    with pytest.raises(ConfigError, match="NUL"):
        await vm.exec(["echo", "a\0b"])
    with pytest.raises(ConfigError, match="environment"):
        await vm.run("", env={"A=B": "c"})
    with pytest.raises(ConfigError, match="timeout"):
        await vm.run("", timeout=0)


async def test_request_that_is_too_large_is_refused_with_its_limit(vm: VM) -> None:
    """Nine MiB of code are the caller's mistake; the VM is not harmed. A mebibyte of arguments is no problem."""
    with pytest.raises(ConfigError, match="limit is 8388608"):
        await vm.run("#" * 9 * MIB)
    arguments = ["x" * 65536] * 16
    result = await vm.exec(["bash", "-c", 'echo -n "$*" | wc -c', "bash", *arguments])
    assert result.text.strip() == str(16 * 65536 + 15)


async def test_program_that_kills_its_parent_is_only_ended_itself(vm: VM) -> None:
    """The parent of user code is the guest's init: it cannot be signalled, and the VM goes on."""
    result = await vm.run("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    assert result.exit_code == 1
    assert b"PermissionError" in result.stderr
    assert (await vm.run("print(1)")).ok


async def test_a_guest_that_powers_off_is_lost_with_what_it_said(template: Template) -> None:
    """Root in the guest may end the VM: the caller gets `GuestLost` with the output up to then."""
    async with template.lease() as vm:
        code = "import os, time; print('last words'); time.sleep(0.3); open('/proc/sysrq-trigger', 'w').write('o')"
        with pytest.raises(GuestLost) as lost:
            await vm.run(code, user="root", timeout=20)
        assert lost.value.partial is not None
        assert lost.value.partial.stdout == b"last words\n"
        assert not vm.is_alive
        with pytest.raises(GuestLost):
            await vm.run("print(1)")


async def test_cancelled_run_leaves_a_usable_vm(vm: VM) -> None:
    """Cancelling a call kills its program; the next call finds the VM in order."""
    with anyio.move_on_after(0.3):
        await vm.exec("sleep 1004")
    with anyio.fail_after(5):
        while b"1004" in (await vm.exec("ps -e -o args=")).stdout:
            pass


async def test_error_of_the_output_sink_reaches_the_caller(vm: VM) -> None:
    """What the caller's callback raises is raised as itself, and the program is ended."""

    def refuse(_stream: StreamName, _data: bytes) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        await vm.exec("while true; do echo x; done", on_output=refuse, timeout=10)
    assert (await vm.run("print(1)")).ok


async def test_nothing_piles_up_where_scripts_are_placed(vm: VM) -> None:
    """A script's file is there while anything of it runs, also under another name, and is removed afterwards."""
    for _ in range(3):
        assert (await vm.run("import os; print(os.path.exists(__file__))")).text == "True\n"
        assert (await vm.exec(["true"])).ok
    left_over = "import subprocess; subprocess.Popen(['sleep', '99'], start_new_session=True); print(__file__)"
    path = (await vm.run(left_over)).text.strip()
    assert (await vm.exec(["cat", path])).text.startswith("import subprocess")
    listing = await vm.exec("ls /run/scripts | wc -l", user="root")
    assert int(listing.text) <= 3, "that of the sleeper, of this command, and of the child made ahead"


async def test_a_relative_directory_lies_below_the_workspace(vm: VM) -> None:
    """Whoever starts the program, and however."""
    await vm.exec("mkdir -p /workspace/below")
    show = "import os; print(os.getcwd())"
    for user in (None, "root"):
        assert (await vm.run(show, cwd="below", user=user)).text == "/workspace/below\n"
    assert (await vm.exec("pwd", cwd="below", pty=(24, 80))).text == "/workspace/below\r\n"


@pytest.mark.parametrize("how", ["in_its_run", "in_the_background"])
async def test_a_program_meets_the_account_as_it_is_now(vm: VM, how: str) -> None:
    """Also when root has changed it after the program's process was made, which is ahead of the request."""
    change = "sed -i 's#^user:.*#user:x:1000:1000::/tmp:/bin/sh#' /etc/passwd"
    if how == "in_its_run":
        (await vm.exec(change, user="root")).check()
    else:
        waiting = f"(while ! [ -e /tmp/go ]; do sleep 0.01; done; {change}; touch /tmp/done) >/dev/null 2>&1 &"
        (await vm.exec(waiting, user="root")).check()
        await vm.files.write("/tmp/go", b"")
        with anyio.fail_after(20):
            while not await vm.files.exists("/tmp/done"):  # noqa: ASYNC110 - what root does is no event of ours
                await anyio.sleep(0.02)
    assert (await vm.run("import os; print(os.environ['HOME'], os.environ['SHELL'])")).text == "/tmp /bin/sh\n"


async def test_limit_of_files_counts_the_programs_own_only(vm: VM) -> None:
    """Not even one byte may be written: the script itself is there all the same, and its output is no file."""
    result = await vm.run("print(1)\nopen('a file', 'wb', 0).write(b'x')", limits=Limits(file_bytes=0))
    assert (result.exit_code, result.stdout) == (1, b"1\n")
    assert b"Errno 27" in result.stderr


@pytest.mark.parametrize("size", [(24.5, 80), (24, True)])
async def test_terminal_of_no_size_is_refused(vm: VM, size: Any) -> None:
    """Before the guest hears of it."""
    with pytest.raises(ConfigError, match="a terminal of"):
        await vm.exec(["true"], pty=size)
    (await vm.exec(["true"])).check()
