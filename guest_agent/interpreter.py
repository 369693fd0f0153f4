"""A persistent Python interpreter: what one cell defines, the next one finds."""

import _signal
import ast
import base64
import builtins
import linecache
import os
import sys
import types

import bundle
import program
from control import Control

_CO_COROUTINE = 0x80
_MARKS_OF_STATEMENTS = "\n;=\\"
_SIGINT = 2
_PYPLOT = "matplotlib.pyplot"


def serve():
    """Answer each cell with its value, what it displayed, and its error."""
    control = Control()
    os.environ.setdefault("MPLBACKEND", "agg")
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    sys.argv = [""]
    sys.path.insert(0, "")
    cells = _Cells(main.__dict__, control)
    for request in control.requests():
        if "code" in request:  # else it is an interrupt, whose cell has ended
            control.send_json(cells.run(request["code"], request["number"]))
    program.end(0)


class _Cells:
    def __init__(self, namespace, control):
        self._namespace = namespace
        self._control = control
        self._pid = os.getpid()
        self._modules = sys.modules  # a cell may give that name to something else
        self._runs = False
        self._displayed = []
        self._left_out = 0
        self._loop = None
        builtins.display = self._display
        self._take_interrupts()

    def _take_interrupts(self):
        _signal.signal(_SIGINT, self._interrupt)  # `signal.signal` takes twenty times as long

    def _interrupt(self, _number, _frame):
        """Between cells there is nothing to interrupt."""
        if self._runs:
            raise KeyboardInterrupt

    def _display(self, *values):
        """Show values as notebooks do: each as a bundle of representations."""
        for value in values:
            if len(self._displayed) < bundle.MOST_DISPLAYED:
                self._displayed.append(bundle.bundle(value))
            else:
                self._left_out += 1

    def run(self, code, number):
        self._displayed, self._left_out = [], 0
        answer = {"number": number}
        self._step(answer, self._show, answer, code, number)
        pyplot = self._modules.get(_PYPLOT)
        if pyplot is not None:  # None where a cell has forbidden the import
            self._step(answer, self._display_figures, pyplot)
        self._flush()
        if os.getpid() != self._pid:
            self._end_fork(answer)
        if self._left_out:
            self._displayed.append({"text/plain": f"<{self._left_out} more were left out>"})
        answer["displayed"] = self._displayed
        return bundle.fit(answer)

    def _step(self, answer, act, *arguments):
        try:
            self._take_interrupts()  # the code of a cell may have set another handler
            self._runs = True
            if self._control.is_asked():  # an interrupt that came before the cell began
                raise KeyboardInterrupt
            act(*arguments)
            self._runs = False
        except BaseException as error:
            self._runs = False
            answer.setdefault("error", bundle.describe(error))

    def _show(self, answer, code, number):
        value = self._evaluate(code, f"<cell {number}>")
        if value is not None:
            self._namespace["_"] = value
            answer["value"] = bundle.bundle(value)

    def _evaluate(self, code, name):
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        parts = self._compile(code, name)
        if any(part.co_flags & _CO_COROUTINE for part in parts):
            return self._await(self._evaluate_awaiting(parts))
        value = None
        for part in parts:
            value = eval(part, self._namespace)
        return value

    def _compile(self, code, name):
        """Return what to evaluate, one part after another; the value of the last one is the cell's."""
        if not code[:1].isspace() and not any(mark in code for mark in _MARKS_OF_STATEMENTS):
            try:
                return [compile(code, name, "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)]  # five times as fast as by a tree
            except SyntaxError:  # a statement after all
                pass
        tree = ast.parse(code, name)
        last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        parts = [compile(tree, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)] if tree.body else []
        if last is not None:
            parts.append(compile(last, name, "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
        return parts

    async def _evaluate_awaiting(self, parts):
        for part in parts:
            value = eval(part, self._namespace)
            if part.co_flags & _CO_COROUTINE:
                value = await value
        return value

    def _await(self, coroutine):
        """Run it to its end; when interrupted, let it clean up, so that nothing of it goes on in the next cell."""
        import asyncio  # noqa: PLC0415 - most never need it

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                self._loop.run_until_complete(asyncio.wait([task]))
            if not task.cancelled():
                task.exception()  # so that nobody complains that it was not asked for
            raise

    def _display_figures(self, pyplot):
        if not pyplot.get_fignums():
            return
        import io  # noqa: PLC0415 - most never need it

        try:
            for number in pyplot.get_fignums():
                image = io.BytesIO()
                pyplot.figure(number).savefig(image, format="png", bbox_inches="tight")
                png = base64.b64encode(image.getvalue()).decode()
                self._displayed.append({"image/png": png, "text/plain": "<Figure>"})
        finally:
            pyplot.close("all")

    def _flush(self):
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # closed, or replaced by the cell
                pass

    def _end_fork(self, answer):
        """A child that the cell forked has come to the cell's end: only its parent answers."""
        if "error" in answer:
            os.write(2, answer["error"]["traceback"].encode(errors="backslashreplace"))
        os._exit(1 if "error" in answer else 0)
