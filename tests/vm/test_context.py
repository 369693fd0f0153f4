"""Persistent interpreters: what lasts from cell to cell, and what a cell gives back."""

from __future__ import annotations

import base64
import json

import pytest

from sandbox.errors import ConfigError, StateError
from sandbox.guest.context import Context
from sandbox.result import CellResult, Outcome
from sandbox.vm import VM

DEEP = "eval('[' * 150 + ']' * 150)"
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


async def test_a_cell_is_python_as_in_a_file(vm: VM) -> None:
    """An expression is taken by a shorter way; what is no valid line of a file is none of a cell either."""
    async with vm.context() as context:
        for code in (" 1", "\t1", "\f 1"):
            result = await context.run(code)
            assert result.error is not None, code
            assert result.error.name == "IndentationError"
        warned = await ok(context, "'' is ''")
        assert warned.stderr.count(b"SyntaxWarning") == 1
        for code in ("1 # one", "(\n1)", "# one\n1", "1;", "x = 1; x", "await_ = 1; await_", "(x := 1)"):
            result = await ok(context, code)
            assert result.value == {"text/plain": "1"}, code
        for code in ("raise ValueError", "1 +", "x ="):
            result = await context.run(code)
            assert result.error is not None
            assert "<cell" in result.error.traceback
            assert "interpreter.py" not in result.error.traceback


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
        forbidden = await ok(context, "sys.modules['matplotlib.pyplot'] = None; 4")
        assert forbidden.value == {"text/plain": "4"}, "an import that is forbidden has no figures"


async def test_top_level_await_shares_one_event_loop(vm: VM) -> None:
    """Cells may await; tasks go on in later cells; an interrupted cell's coroutine does not."""
    async with vm.context() as context:
        begun = "import asyncio\ntask = asyncio.create_task(asyncio.sleep(0.01, 'slept'))\nawait asyncio.sleep(0)"
        assert (await ok(context, begun)).value is None
        assert (await ok(context, "await task")).value == {"text/plain": "'slept'"}
        waiting = "try:\n    await asyncio.sleep(600)\nfinally:\n    print('cleaned up')"
        interrupted = await context.run(waiting, timeout=1.5)
        assert (interrupted.outcome, interrupted.stdout) == (Outcome.TIMED_OUT, b"cleaned up\n")
        assert interrupted.context_alive
        assert (await ok(context, "await asyncio.sleep(0.05); len(asyncio.all_tasks())")).value == {"text/plain": "1"}


async def test_options_of_a_context_hold_for_its_cells(vm: VM) -> None:
    """What is kept of a cell's output is the context's own unless a call says otherwise; unknown options are told."""
    async with vm.context(capture_bytes=3, cwd="/tmp") as context:
        short = await ok(context, "import os; print(os.getcwd())")
        assert (short.stdout, short.stdout_bytes) == (b"/tm", 5)
        assert (await context.run("print(1234)", capture_bytes=100)).stdout == b"1234\n"
    for wrong in ({"capture_bytes": -1}, {"colour": "red"}):
        with pytest.raises(ConfigError):
            vm.open_context(**wrong)


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
            ("x = '\udcff'", "UnicodeEncodeError"),
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
        both = await ok(
            context,
            "pid = os.fork(); sys.stdout.write('both\\n' if pid else 'child\\n'); pid and os.waitpid(pid, 0)[1]",
        )
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
        wide = (await ok(context, "'x' * 5_000_000 + '\\U0001f600'")).value
        assert wide is not None
        assert "more characters were left out" in wide["text/plain"], "each character would take four bytes"
        data = "class J:\n    def _repr_json_(self): return {data}\nJ()"
        for json_data, is_left_out in (("[[0]] * 10_000", False), ("[0] * 200_000", True), (DEEP, True)):
            value = (await ok(context, data.format(data=json_data))).value
            assert value is not None
            assert ("left out" in value["application/json"]) is is_left_out
        kinds = "M = dict.fromkeys(map('x/{}'.format, range(500)), 'x' * 90_000)\n"
        kinds += "class K:\n    def _repr_mimebundle_(self, **_): return M\n"
        shown = await ok(context, kinds + "for _ in range(30): display(K())\nK()")
        assert shown.value is not None
        assert shown.value["x/0"] == "x" * 90_000
        assert len(shown.value) < 200
        assert "more was left out" in shown.displayed[-1]["text/plain"]
        long = await context.run("raise ValueError('\\x01' * 9_000_000)", timeout=60)
        assert long.error is not None
        assert "left out" in long.error.text
        assert len(json.dumps(long.error.text)) < 2 * MIB
        assert "left out" in long.error.traceback
