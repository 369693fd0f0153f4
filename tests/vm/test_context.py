"""Persistent interpreters: what lasts from cell to cell, what a cell gives back, and how it comes to its end."""

from __future__ import annotations

import base64
import json

import anyio
import pytest

from sandbox.certificate import Cause
from sandbox.errors import ConfigError, StateError
from sandbox.guest.context import Context
from sandbox.result import CellResult, Outcome
from sandbox.vm import VM

MIB = 1024 * 1024
SHOWN = """
class Shown:
    def _repr_html_(self): return "<b>shown</b>"
    def _repr_png_(self): return b"\\x89PNG"
    def _repr_json_(self): return {"a": [1, None]}
    def _repr_latex_(self): raise ValueError("not today")
    def __repr__(self): return "plain"
class Whole:
    def _repr_mimebundle_(self, include, exclude): return {"text/x": "whole", "text/plain": "p"}, {"meta": 1}
class Odd:
    def _repr_json_(self): return object()
    def __repr__(self): return "odd"
"""
PYPLOT = """
import sys, types
pyplot = sys.modules["matplotlib.pyplot"] = types.ModuleType("matplotlib.pyplot")
open_figures = [1, 2]
class Figure:
    def __init__(self, number): self.number = number
    def savefig(self, file, format, bbox_inches): file.write(b"figure %d" % self.number)
pyplot.get_fignums = lambda: list(open_figures)
pyplot.figure = Figure
pyplot.close = lambda what: open_figures.clear()
"""


async def ok(context: Context, code: str) -> CellResult:
    """Run a cell that is expected to end well."""
    result = await context.run(code, timeout=60)
    assert result.error is None, result.error
    assert result.ok
    return result


async def test_state_lasts_and_the_last_expression_is_the_value(vm: VM) -> None:
    """Names, imports, functions and the working directory last; a statement has no value, an expression has."""
    async with vm.context() as context:
        assert (await ok(context, "import os\nx = 6\ndef f(): return x * 7\nos.chdir('/tmp')")).value is None
        result = await ok(context, "print('out')\nf()")
        assert (result.value, result.stdout, result.id) == ({"text/plain": "42"}, b"out\n", f"{context.id}/2")
        assert (await ok(context, "_, os.getcwd()")).value == {"text/plain": "(42, '/tmp')"}
        assert (await ok(context, "None")).value is None
        assert (await ok(context, "")).value is None
        numbers = await ok(context, "import numpy\nnumpy.arange(6).reshape(2, 3)")
        assert numbers.value == {"text/plain": "array([[0, 1, 2],\n       [3, 4, 5]])"}
    assert not context.is_alive
    with pytest.raises(StateError, match="has ended"):
        await context.run("1")


async def test_values_offer_all_their_representations(vm: VM) -> None:
    """HTML, images, JSON, whole bundles, `display` and open figures arrive; what a value cannot do is left out."""
    async with vm.context() as context:
        await ok(context, SHOWN)
        shown = {
            "text/html": "<b>shown</b>",
            "image/png": base64.b64encode(b"\x89PNG").decode(),
            "application/json": {"a": [1, None]},
            "text/plain": "plain",
        }
        assert (await ok(context, "Shown()")).value == shown
        result = await ok(context, "display(Shown(), 1); display('two'); Whole()")
        assert result.displayed == (shown, {"text/plain": "1"}, {"text/plain": "'two'"})
        assert result.value == {"text/x": "whole", "text/plain": "p"}
        odd = (await ok(context, "Odd()")).value
        assert odd is not None
        assert odd["text/plain"] == "odd"
        assert "left out" in odd["application/json"]
        figures = (await ok(context, PYPLOT)).displayed
        assert [base64.b64decode(figure["image/png"]) for figure in figures] == [b"figure 1", b"figure 2"]
        assert (await ok(context, "3")).displayed == ()
        failing = "open_figures.append(3)\ndef fail(*a, **k): raise OSError('no ink')\nFigure.savefig = fail"
        failed = await context.run(failing)
        assert failed.error is not None
        assert failed.error.text == "no ink"
        assert (await ok(context, "3")).value == {"text/plain": "3"}, "a figure that cannot be drawn fails once"


async def test_top_level_await_shares_one_event_loop(vm: VM) -> None:
    """Cells may await; tasks go on in later cells; an interrupted cell's coroutine does not."""
    async with vm.context() as context:
        begun = "import asyncio\ntask = asyncio.create_task(asyncio.sleep(0.01, 'slept'))\nawait asyncio.sleep(0)"
        assert (await ok(context, begun)).value is None
        assert (await ok(context, "await task")).value == {"text/plain": "'slept'"}
        waiting = "try:\n    await asyncio.sleep(600)\nfinally:\n    print('cleaned up')"
        interrupted = await context.run(waiting, timeout=0.3)
        assert (interrupted.outcome, interrupted.stdout) == (Outcome.TIMED_OUT, b"cleaned up\n")
        assert interrupted.context_alive
        assert (await ok(context, "await asyncio.sleep(0.05); len(asyncio.all_tasks())")).value == {"text/plain": "1"}


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


async def test_a_cell_that_will_not_end_takes_its_context_along(vm: VM) -> None:
    """Code that ignores the interrupt is killed with its context, which says so, and the others live on."""
    stubborn = "while True:\n    try:\n        while True: x += 1\n    except KeyboardInterrupt: print('never')"
    async with vm.context() as context, vm.context() as other:
        await ok(other, "y = 1")
        await ok(context, "x = 1")
        result = await context.run(stubborn, timeout=0.2)
        assert (result.outcome, result.context_alive, result.exit_code) == (Outcome.TIMED_OUT, False, None)
        assert result.stdout.startswith(b"never")
        with pytest.raises(StateError, match="timed_out"):
            await context.run("1")
        assert (await ok(other, "y")).value == {"text/plain": "1"}
    async with vm.context() as context:
        await ok(context, "1")
        with anyio.move_on_after(0.1):
            await context.run("x = 1\n" + stubborn)
        with pytest.raises(StateError, match="cancelled"):
            await context.run("1")


async def test_errors_are_data_and_begin_in_the_cell(vm: VM) -> None:
    """Exceptions, exits, syntax errors, odd code and the end of input are told; the context lives on."""
    async with vm.context() as context:
        await ok(context, "def f(n):\n    return n / 0")
        failed = await context.run("print('before')\nf(1)")
        assert (failed.exit_code, failed.stdout, failed.value) == (1, b"before\n", None)
        assert failed.error is not None
        assert (failed.error.name, failed.error.text) == ("ZeroDivisionError", "division by zero")
        lines = failed.error.traceback.splitlines()
        assert lines[1] == '  File "<cell 2>", line 2, in <module>'
        assert 'File "<cell 1>", line 2, in f' in failed.error.traceback
        assert "return n / 0" in failed.error.traceback
        assert "sandbox" not in failed.error.traceback
        for code, name in [
            ("raise SystemExit(3)", "SystemExit"),
            ("import sys; sys.exit()", "SystemExit"),
            ("input()", "EOFError"),
            ("if :", "SyntaxError"),
            ("x = '\ud800'", "UnicodeEncodeError"),
            ("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", "E"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("raise ValueError('\\ud800' * 3 + 'é' * 10**6)", "ValueError"),
            ("def f(): f()\nf()", "RecursionError"),
            ("import sys; sys.stdout = None; 1 / 0", "ZeroDivisionError"),
            ("sys.stdout = sys.__stdout__; sys.stdin.read(); input()", "EOFError"),
        ]:
            result = await context.run(code, timeout=30)
            assert result.error is not None, code
            assert (result.error.name, result.exit_code, result.context_alive) == (name, 1, True), code
        nul = await context.run("x = 'a\0b'")
        assert nul.error is not None
        assert nul.error.name in ("ValueError", "SyntaxError"), "it depends on Python's version"
        assert (await ok(context, "print('ü\U0001f600', 1); 'ü'")).value == {"text/plain": "'ü'"}
        assert (await ok(context, "'\\ud800'")).value == {"text/plain": "'\\ud800'"}


async def test_output_of_threads_children_and_much_of_it_belongs_to_the_cell(vm: VM) -> None:
    """What threads and subprocesses write while a cell runs is that cell's, 2 MiB as well; a cut shows both ends."""
    async with vm.context() as context:
        code = (
            "import os, subprocess, sys, threading\n"
            "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
            "subprocess.run(['sh', '-c', 'echo child; echo error >&2']); "
            "os.write(1, b'raw\\n'); os.system('echo system')"
        )
        result = await ok(context, code)
        assert (result.stdout, result.stderr) == (b"thread\nchild\nraw\nsystem\n", b"error\n")
        seen: list[bytes] = []
        large = await context.run(
            "sys.stdout.write('é' * (1024 * 1024)); 1", timeout=60, on_output=lambda _, data: seen.append(data)
        )
        assert large.stdout == "é".encode() * MIB == b"".join(seen)
        assert large.value == {"text/plain": "1"}
        cut = await context.run("for i in range(30000): print(i)", timeout=60, capture_bytes=10)
        assert (cut.stdout, cut.stdout_truncated) == (b"0\n1\n2\n3\n4\n", True)
        assert cut.stdout_tail.endswith(b"29998\n29999\n")
        assert (await ok(context, "os.fork() or os._exit(0); 'parent'")).value == {"text/plain": "'parent'"}
        both = await ok(context, "pid = os.fork(); print('both' if pid else 'child'); pid and os.waitpid(pid, 0)[1]")
        assert sorted(both.stdout.split()) == [b"both", b"child"]
        assert both.value == {"text/plain": "0"}, "the child of a fork ends with its cell"


async def test_huge_results_are_cut_and_say_so(vm: VM) -> None:
    """Values, displays and errors beyond what an answer holds are cut, whatever their characters are."""
    async with vm.context() as context:
        value = (await ok(context, "'\\x01' * 9_000_000")).value
        assert value is not None
        assert "more characters were left out" in value["text/plain"]
        html = "class H:\n    def _repr_html_(self): return 'é' * 9_000_000\nH()"
        value = (await ok(context, html)).value
        assert value is not None
        assert "left out" in value["text/html"]
        assert value["text/plain"].startswith("<__main__.H")
        many = await ok(context, "for i in range(20_000): display(i)")
        assert many.displayed[9_999] == {"text/plain": "9999"}
        assert many.displayed[-1] == {"text/plain": "<10000 more were left out>"}
        long = await context.run("raise ValueError('\\x01' * 9_000_000)", timeout=60)
        assert long.error is not None
        assert "left out" in long.error.text
        assert len(json.dumps(long.error.text)) < 2 * MIB
        assert "left out" in long.error.traceback


@pytest.mark.parametrize(
    ("language", "code", "outcome", "status", "number"),
    [
        ("python", "print('last'); import os; os._exit(3)", Outcome.EXITED, 3, None),
        ("python", "print('last'); import os; os.kill(os.getpid(), 9)", Outcome.SIGNALED, None, 9),
        ("python", "print('last'); import os; os.write(4, b'rubbish' * 100)", Outcome.PROTOCOL_ERROR, None, 9),
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
