"""The process that scripts fork from: what happens when it, or what it has made ahead, goes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio

from sandbox.result import Outcome
from sandbox.vm import VM

KILL_ZYGOTE = "pkill -KILL -o -f sandbox-agent/zygote"


async def test_a_script_goes_on_although_its_zygote_is_killed(vm: VM) -> None:
    """Its end is told all the same, and programs after it find another zygote."""
    code = "import sys\nprint('started')\nsys.stdin.readline()\nraise SystemExit(7)"
    started, killed = anyio.Event(), anyio.Event()

    async def typed() -> AsyncIterator[bytes]:
        await killed.wait()
        yield b"go on\n"

    async def kill() -> None:
        await started.wait()
        (await vm.exec(KILL_ZYGOTE, user="root")).check()
        killed.set()

    async with anyio.create_task_group() as group:
        group.start_soon(kill)
        result = await vm.run(code, stdin=typed(), on_output=lambda *_: started.set(), timeout=60)
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.EXITED, 7, b"started\n")
    for _ in range(3):
        assert (await vm.run("print(6 * 7)", timeout=30)).text == "42\n"
    assert (await vm.files.write("after", b"x")).size == 1


async def test_a_killed_child_that_was_made_ahead_is_replaced(vm: VM) -> None:
    """The next script is served by another one, or told; it never hangs."""
    await vm.run("pass")
    for _ in range(3):
        kill = "child=$(pgrep -n -f '[s]andbox-agent/zygote') && kill -KILL $child && while kill -0 $child; do :; done"
        (await vm.exec(kill, user="root", timeout=30)).check()
        result = await vm.run("print(6 * 7)", timeout=30)
        assert result.text == "42\n", result


async def test_scripts_side_by_side_have_files_of_their_own(vm: VM) -> None:
    """Of one name in one directory: each finds its own code in its file, and none is left."""
    found: dict[int, str] = {}

    async def run(number: int) -> None:
        code = f"import time\ntime.sleep(0.2)\nprint(open(__file__).read().splitlines()[-1])\n# number {number}"
        found[number] = (await vm.run(code, timeout=60)).check().text

    async with anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(run, number)
    assert found == {number: f"# number {number}\n" for number in range(6)}
    assert (await vm.exec("ls")).text == ""


async def test_a_script_never_replaces_a_file(vm: VM) -> None:
    """Where its name is taken it gets another one; the same content is run where it lies, and stays."""
    await vm.files.write("main.py", b"print('theirs')")
    other = await vm.run("print(__file__)", name="main.py")
    assert other.text == "/workspace/main-1.py\n"
    same = await vm.run("print('theirs')", name="main.py")
    assert same.text == "theirs\n"
    assert await vm.files.read("main.py") == b"print('theirs')"
    assert (await vm.exec("ls")).text == "main.py\n"


async def test_a_script_in_a_directory_that_its_user_may_not_write(vm: VM) -> None:
    """It runs there, from a file of its own elsewhere."""
    result = await vm.run("import os\nprint(os.getcwd(), __file__)", cwd="/etc")
    cwd, path = result.check().text.split()
    assert cwd == "/etc"
    assert path.startswith("/run/scripts/")
    assert (await vm.exec(["ls", "/run/scripts"])).text == ""
