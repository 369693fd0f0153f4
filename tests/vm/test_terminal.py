"""A program on a terminal: nothing of its output is lost, and its input ends."""

from __future__ import annotations

import re

import pytest

from sandbox.vm import VM

RUNS = 40


async def test_nothing_written_to_a_terminal_is_lost(vm: VM) -> None:
    """What the kernel still carries from the program's side of a terminal to ours belongs to the output."""
    expected = "".join(f"{number:05}\r\n" for number in range(10_000)).encode()
    code = "import sys; sys.stdout.write(''.join(f'{number:05}\\n' for number in range(10_000)))"
    for _ in range(RUNS):
        result = await vm.run(code, pty=(24, 80), timeout=30)
        assert result.stdout == expected


async def test_who_holds_the_terminal_does_not_delay_the_end(vm: VM) -> None:
    """A program in the background that goes on writing to the terminal is not waited for."""
    ended = await vm.exec("setsid yes & sleep 0.2; echo end", pty=(24, 80), timeout=30)
    assert ended.exit_code == 0
    assert b"y\r\n" in ended.stdout
    await vm.exec(["pkill", "yes"])


@pytest.mark.parametrize("given", [b"", b"line\n", b"line\npart", b"part", b"\x04", b"x" * 3000])
async def test_standard_input_on_a_terminal_ends(vm: VM, given: bytes) -> None:
    """Whether its last line is whole or not, and with whatever character means the end."""
    count = str(len(given.removesuffix(b"\x04")))
    counted = await vm.exec("stty -echo; wc -c", stdin=given, pty=(24, 80), timeout=20)
    assert counted.ok, counted.certificate
    assert re.findall(r"\d+", counted.text)[-1] == count
    other = await vm.spawn("stty -echo eof ^A; echo set; wc -c", stdin=None, pty=(24, 80), timeout=20)
    async for event in other.events():
        if getattr(event, "data", b"").startswith(b"set"):
            await other.write(given.replace(b"\x04", b"\x01"))
            await other.close_stdin()
    assert re.findall(r"\d+", (await other.wait()).text)[-1] == count


@pytest.mark.parametrize("given", [b"x\n" * 32767 + b"\n", b"x\n" * 32766 + b"xx"])
async def test_the_end_of_input_is_no_input_of_the_hosts(vm: VM, given: bytes) -> None:
    """The characters that end it come from the agent: credit for them would be more than the host has spent."""
    result = await vm.exec(["cat"], stdin=given, pty=(24, 80), timeout=60)
    assert result.ok, result.certificate
    assert result.stdout.count(b"x") == 2 * given.count(b"x"), "each once as echo, once from the program"
    assert (await vm.exec("true", timeout=30)).ok
