"""Cells of persistent interpreters that are interrupted, end their interpreter, or cannot be asked."""

from __future__ import annotations

import anyio
import pytest

from sandbox.certificate import Cause
from sandbox.errors import ConfigError, StateError
from sandbox.guest.context import Context
from sandbox.result import CellResult, Outcome
from sandbox.vm import VM

MIB = 1024 * 1024


async def ok(context: Context, code: str) -> CellResult:
    """Run a cell that is expected to end well."""
    result = await context.run(code, timeout=60)
    assert result.error is None, result.error
    assert result.ok
    return result


@pytest.mark.parametrize("language", ["python", "bash"])
async def test_a_cell_that_takes_too_long_is_interrupted_and_state_is_kept(vm: VM, language: str) -> None:
    """Time-outs and cancelled calls end a cell, not its context, however early they come."""
    slow = {
        "python": [
            "import time\nprint('a', flush=True); time.sleep(600)",
            "while True: pass",
            "import os; os.system('sleep 600')",
        ],
        "bash": ["echo a; sleep 600; echo no", "while :; do :; done; echo no", "f() { sleep 600; }; f; f; echo no"],
    }[language]
    show = {"python": "print(x)", "bash": "echo $x"}[language]
    async with vm.context(language) as context:
        assert (await context.run("x=5", timeout=60)).ok
        for code in slow:
            result = await context.run(code, timeout=0.3)
            assert (result.outcome, result.exit_code, result.context_alive) == (Outcome.TIMED_OUT, None, True)
            assert b"no" not in result.stdout
            assert result.certificate is not None
            assert result.certificate.cause is Cause.DEADLINE
        for delay in (0.0001, 0.002, 0.01, 0.1):
            with anyio.move_on_after(delay):
                await context.run(slow[1])
            again = await context.run(show, timeout=30)
            assert (again.outcome, again.stdout, again.exit_code) == (Outcome.EXITED, b"5\n", 0), delay
        async with anyio.create_task_group() as group:
            group.start_soon(context.run, slow[1])
            await anyio.sleep(0.05)
            context.interrupt()
        context.interrupt()
        assert (await context.run(show, timeout=30)).stdout == b"5\n"
    for delay in (0.0001, 0.03, 0.06):
        async with vm.context(language) as fresh:
            early = await fresh.run(slow[0], timeout=delay)
            assert (early.outcome, early.context_alive) == (Outcome.TIMED_OUT, True), "while the interpreter starts"
            assert (await fresh.run("x=5", timeout=30)).ok


async def test_a_cell_that_will_not_end_takes_its_context_along(vm: VM) -> None:
    """Code that ignores the interrupt is killed with its context, which says so, and the others live on."""
    stubborn = "while True:\n    try:\n        while True: time.sleep(1)\n    except KeyboardInterrupt: print('never')"
    async with vm.context() as context, vm.context() as other:
        await ok(other, "y = 1")
        await ok(context, "import time")
        result = await context.run(stubborn, timeout=1.5)
        assert (result.outcome, result.context_alive, result.exit_code) == (Outcome.TIMED_OUT, False, None)
        assert result.stdout.startswith(b"never")
        with pytest.raises(StateError, match="timed_out"):
            await context.run("1")
        assert (await ok(other, "y")).value == {"text/plain": "1"}
    async with vm.context() as context:
        await ok(context, "1")
        with anyio.move_on_after(1.5):  # long enough for the loop to be entered
            await context.run("import time\n" + stubborn)
        with pytest.raises(StateError, match="cancelled"):
            await context.run("1")


@pytest.mark.parametrize(
    ("language", "code", "outcome", "status", "number"),
    [
        ("python", "print('last'); import os; os._exit(3)", Outcome.EXITED, 3, None),
        ("python", "print('last'); import os; os.kill(os.getpid(), 9)", Outcome.SIGNALED, None, 9),
        ("python", "print('last'); import os; os.write(4, b'rubbish' * 100)", Outcome.PROTOCOL_ERROR, None, 9),
        ("python", "print('last'); import os; os.write(4, b'rubbish' * 200_000)", Outcome.PROTOCOL_ERROR, None, 9),
        ("bash", "echo last; exit 3", Outcome.EXITED, 3, None),
        ("bash", "echo last; set -e; false; echo no", Outcome.EXITED, 1, None),
        ("bash", "echo last; kill -9 $$", Outcome.SIGNALED, None, 9),
    ],
)
async def test_code_that_ends_its_interpreter_ends_no_other(
    vm: VM, language: str, code: str, outcome: Outcome, status: int | None, number: int | None
) -> None:
    """Exits, kills and rubbish on the control stream end that context with the truth about it, and nothing else."""
    async with vm.context(language) as context, vm.context() as other:
        await ok(other, "y = 1")
        result = await context.run(code, timeout=30)
        assert (result.outcome, result.exit_code, result.signal) == (outcome, status, number)
        assert (result.stdout, result.context_alive, context.is_alive) == (b"last\n", False, False)
        with pytest.raises(StateError):
            await context.run("1")
        assert (await ok(other, "y")).value == {"text/plain": "1"}


async def test_bash_keeps_its_state_and_tells_its_errors(vm: VM) -> None:
    """Directory, variables, functions, options and jobs last; here-docs work; errors have bash's statuses."""
    async with vm.context("bash") as context:
        for code, stdout, status in [
            ("cd /tmp; x='a b'; export y=2; declare -A m=([k]=v); f() { echo \"f $1 $x\"; return 4; }", "", 0),
            ("pwd; f 1", "/tmp\nf 1 a b\n", 4),
            ("echo $y ${m[k]}; bash -c 'echo $y'", "2 v\n2\n", 0),
            ("cat <<EOF\nhere $x\nEOF", "here a b\n", 0),
            ("return 7", "", 7),
            ("if then", "", 2),
            ("no-such-command", "", 127),
            ("cat; read z; echo $?", "1\n", 0),
            ("set -o noclobber; sleep 600 & echo", "\n", 0),
            ("jobs -r | wc -l; kill %1; set +o | grep noclobber; wait", "1\nset -o noclobber\n", 0),
            ("(exit 9)", "", 9),
            ("exec 3>three 4<three; echo a >&3; read() { echo mine; }", "", 0),
            ("echo b >&3; cat <&4; unset -f read", "a\nb\n", 0),
            ("printf 'ü\\n'; false", "ü\n", 1),
            ("set -e; if false; then :; fi; false || echo on", "on\n", 0),
        ]:
            result = await context.run(code, timeout=30)
            assert (result.text, result.exit_code) == (stdout, status), (code, result.stderr)
        assert (result.outcome, result.context_alive, result.error) == (Outcome.EXITED, True, None)
        with pytest.raises(ConfigError, match="NUL"):
            await context.run("echo a\0b")
        with pytest.raises(ConfigError, match="character"):
            await context.run("echo \ud800")
        assert (await context.run("echo $x", timeout=30)).stdout == b"a b\n", "refused code harms nobody"
    with pytest.raises(ConfigError):
        vm.open_context("cobol")


async def test_what_cannot_be_asked_is_refused_and_sinks_may_fail(vm: VM) -> None:
    """Impossible arguments and endless code are the caller's mistake; a sink's error reaches the caller of the cell."""
    async with vm.context() as context:
        for wrong in ({"timeout": 0}, {"timeout": float("nan")}, {"capture_bytes": -1}):
            with pytest.raises(ConfigError):
                await context.run("1", **wrong)
        with pytest.raises(ConfigError, match="large data"):
            await context.run("#" * 17 * MIB)
        await ok(context, "x = 1 #" + "é" * MIB)

        def refuse(*_: object) -> None:
            raise LookupError("enough")

        with pytest.raises(LookupError, match="enough"):
            await context.run("while True: print('x')", on_output=refuse)
        assert (await ok(context, "x")).value == {"text/plain": "1"}
        with pytest.raises(LookupError):
            await context.run("while True:\n    try: print('x')\n    except BaseException: pass", on_output=refuse)
        assert not context.is_alive
